"""Exporting encoders and classifiers to files that other software loads."""
