"""Finding better settings: search spaces, KerasTuner's tuners over our own training runs, and what they found."""
