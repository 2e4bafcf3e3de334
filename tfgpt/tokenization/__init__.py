"""Text to ids and back: byte-level BPE, trained, in bulk and in graph, always with the same result."""
