"""The entropy-coded container ``.osq``, as docs/container.md describes it."""
