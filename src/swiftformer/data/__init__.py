"""Labelled images from folders, Parquet files and the `datasets` library, and the loaders that batch them."""
