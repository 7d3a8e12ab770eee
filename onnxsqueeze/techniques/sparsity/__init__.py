"""Which weights stay, and what they take over."""
