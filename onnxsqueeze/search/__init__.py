"""Searches over pipelines: one budget, every technique, measured."""
