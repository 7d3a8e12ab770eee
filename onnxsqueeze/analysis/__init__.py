"""Questions about models."""
