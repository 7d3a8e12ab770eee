"""What feeds do inside a model."""
