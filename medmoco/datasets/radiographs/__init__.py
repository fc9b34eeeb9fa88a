"""Published sets of chest radiographs."""
