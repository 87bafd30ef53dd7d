"""What a run holds: measured here, planned beside it."""
