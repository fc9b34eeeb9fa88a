"""CSV row to batch of views."""
