"""The mathematics of each technique; none knows another."""
