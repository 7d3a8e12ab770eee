"""The model as objects; files to objects and back, byte for byte."""
