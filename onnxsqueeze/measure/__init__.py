"""What a graph answers, and what it costs."""
