"""Choices for all layers at once, under a budget."""
