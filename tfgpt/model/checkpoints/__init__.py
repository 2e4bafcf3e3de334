"""Checkpoint formats of other people: reading and writing."""
