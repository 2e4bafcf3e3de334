"""Checks of `python -m tfgpt.doctor`, and the model suggestions of `python -m tfgpt.convert`."""
