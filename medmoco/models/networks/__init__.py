"""Networks for volumes, and a stem that timm has no name for."""
