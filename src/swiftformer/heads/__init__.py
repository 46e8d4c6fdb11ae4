"""What stands behind a backbone in dense prediction."""
