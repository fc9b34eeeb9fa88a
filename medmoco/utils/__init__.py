"""Files, tables, signals, progress and counted randomness."""
