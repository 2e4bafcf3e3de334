"""From a model directory to a served model: SavedModels, the files that TensorFlow Serving reads, and a client."""
