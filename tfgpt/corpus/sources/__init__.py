"""Readers of the places a document can come from."""
