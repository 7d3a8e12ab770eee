"""What ONNX Runtime says, in a sentence."""

from __future__ import annotations

import re

__all__ = ["explain"]

_SOURCE_LINE = r"\S+\.(cc|h|cpp|hpp):\d+ ([\w:<>&*, ~]*::[\w~]+\([^()]*\)( const)?|\S+)( \[\w+\])? ?"
"""Where in ONNX Runtime an error arose: file, line, and the name or the whole signature of a C++ function."""
_UNRUN = 'without calibration data, validate="none" squeezes it without running it'
_SENTENCES = (
    (
        r"Opset (\d+) is under development.* domain (\S+) is till opset (\d+)",
        r"its opset \1 of \2 is newer than the \3 that it knows; export the model with opset \3, or update onnxruntime",
    ),
    (
        r"Unsupported model IR version: (\d+), max supported IR version: (\d+)",
        r"its IR version \1 is newer than the \2 that it knows; export the model again, or update onnxruntime",
    ),
    (
        r"(?:Fatal error: )?([\w.]*):?\b(\w+)\(-?\d+\) is not a registered function/op",
        rf"it has no operator '\2' of domain '\1'; {_UNRUN}",
    ),
    (
        r"No Op registered for (\w+) with domain_version of (\d+)",
        rf"it has no operator '\1' in opset \2; {_UNRUN}",
    ),
    (
        r"(?:NOT_IMPLEMENTED : )?Could not find an implementation for (\w+)\((\d+)\)",
        rf"it has no kernel for the operator '\1' (since opset \2) on these types; {_UNRUN}",
    ),
)
"""What ONNX Runtime says to its developers, and what it means to a user."""


def explain(error: Exception) -> str:
    """Return what ONNX Runtime said, without its codes and C++ source lines, in at most 240 characters."""
    text = " ".join(str(error).split())
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(_SOURCE_LINE, "", text)
    text = re.sub(r"(Load model from .* failed:|Exception during initialization: )", "", text).strip()
    text = text or type(error).__name__
    for pattern, sentence in _SENTENCES:
        if found := re.search(pattern, text):
            return found.expand(sentence)
    return text if len(text) <= 240 else text[:239] + "…"
