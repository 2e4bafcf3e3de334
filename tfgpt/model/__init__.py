"""The decoder: its configuration, layers, functional model, presets and checkpoint formats."""
