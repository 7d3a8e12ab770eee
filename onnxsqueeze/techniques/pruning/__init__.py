"""Channels that leave together, and what the others take over."""
