"""Search for settings: trials and their judging, learning rates that carry over to wider models, scaling laws."""
