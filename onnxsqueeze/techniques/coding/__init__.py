"""Weights on one grid per tensor, chosen for the bits that an entropy coder needs."""
