"""Overlap of test data with training data, and the ledger of test evaluations."""
