"""Better settings: searches with KerasTuner, seed comparisons and scaling laws."""
