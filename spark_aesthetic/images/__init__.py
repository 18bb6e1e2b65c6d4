"""Decode image files to pixels, and encode pixels to embeddings. Uses torch, but not Spark."""
