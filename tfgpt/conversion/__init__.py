"""Pretrained models and tokenizers of other programs to our model directory."""
