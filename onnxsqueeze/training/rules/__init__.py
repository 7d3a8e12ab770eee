"""The rules of reverse mode: what each operator does to the gradient of its output, as nodes."""
