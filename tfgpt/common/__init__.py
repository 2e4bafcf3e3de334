"""Modules for every room: errors, settings, flags, atomic files, locks, progress. No TensorFlow."""
