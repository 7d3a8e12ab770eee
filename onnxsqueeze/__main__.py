"""``python -m onnxsqueeze`` is the command line."""

from onnxsqueeze.cli import main

main()
