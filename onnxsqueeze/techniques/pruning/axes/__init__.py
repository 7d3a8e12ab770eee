"""What each operator does to the indices along an axis."""
