"""Loss, bits per byte and accuracy of models on text."""
