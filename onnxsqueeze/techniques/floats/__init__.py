"""Floats of 16 bits: where they hold weights, and models that compute in them."""
