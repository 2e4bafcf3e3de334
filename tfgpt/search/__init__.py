"""Better settings: searches with KerasTuner and their judging, learning rates for wider models, scaling laws."""
