"""Image files to pixels to embeddings. Torch, and no Spark."""
