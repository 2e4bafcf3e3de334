"""How well a model predicts: loss, bits per byte and accuracy on text."""
