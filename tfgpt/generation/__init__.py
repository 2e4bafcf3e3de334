"""Text generation: samplers, cached decoding, beam search and streaming."""
