"""Text out of a decoder: samplers, cached decoding, streaming."""
