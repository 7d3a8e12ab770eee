"""``python -m onnxsqueeze`` is the command line."""

from onnxsqueeze.cli.main import main

main()
