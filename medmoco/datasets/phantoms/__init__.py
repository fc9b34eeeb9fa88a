"""Synthetic chests."""
