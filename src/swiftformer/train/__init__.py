"""Training: recipes and the loop."""
