"""Labelled images from every usual layout, deterministic splits of them, and the loaders that batch them."""
