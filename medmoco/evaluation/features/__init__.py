"""Features of frozen encoders, and probes on them."""
