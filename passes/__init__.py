"""The built-in passes: one file, one pass, found by file name."""

if __name__ != "onnxsqueeze.passes":  # pragma: no cover
    raise ImportError("import this package as onnxsqueeze.passes; the folder passes/ is only where it lives")
