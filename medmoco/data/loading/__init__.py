"""Views to batches: workers, failures, order."""
