"""What every room may use: errors, validated settings, flags, safe file writing, progress lines. No TensorFlow."""
