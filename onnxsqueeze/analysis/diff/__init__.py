"""What differs between two models, and where an error is born."""
