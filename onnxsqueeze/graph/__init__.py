"""Reading and rewriting a graph."""
