"""Fit a head to embeddings and ratings."""
