"""What a machine is good at."""
