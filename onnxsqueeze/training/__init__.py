"""Gradients of ONNX graphs as ONNX nodes, and what trains by them: no training framework, ONNX Runtime runs it all."""
