"""Objectives: what a training run minimizes, with its data, its loss and its metrics."""
