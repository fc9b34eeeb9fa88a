"""Networks that timm does not have by name."""
