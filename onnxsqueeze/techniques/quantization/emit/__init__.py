"""Quantized layers in the forms that ONNX Runtime fuses."""
