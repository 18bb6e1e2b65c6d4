"""A head of one's own, from embeddings and ratings."""
