"""The custom training step and everything around it: optimizers, schedules, checkpoints, watching, resuming."""
