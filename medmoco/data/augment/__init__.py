"""Canvas to augmented view."""
