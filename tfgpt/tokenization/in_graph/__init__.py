"""Tokenizers as TensorFlow operations, with the same ids as the Python tokenizer."""
