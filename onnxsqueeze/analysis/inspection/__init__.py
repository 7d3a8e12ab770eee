"""What every layer of a model costs."""
