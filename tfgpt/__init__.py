"""tfgpt: train a ChatGPT-like model with TensorFlow and Keras, from raw text to a served chat."""

__version__ = "0.1.0"
