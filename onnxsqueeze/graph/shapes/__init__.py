"""Sizes as numbers and symbols, where ONNX's inference gives up."""
