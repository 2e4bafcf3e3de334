"""Documents to token shards to batches."""
