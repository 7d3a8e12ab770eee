"""The straight line from a model to a smaller one: every pass guarded, compared and reported."""
