"""Integers in the place of floats: where they pay, and at which scales."""
