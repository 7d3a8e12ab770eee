"""The only doors to engines."""
