"""What an encoder sees."""
