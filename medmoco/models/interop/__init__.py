"""Read checkpoints of other projects."""
