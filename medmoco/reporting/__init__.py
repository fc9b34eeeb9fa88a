"""Reports of runs, for clinical readers."""
