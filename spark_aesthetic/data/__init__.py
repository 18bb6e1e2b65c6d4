"""Published CLIP embeddings of ten levels of appeal, float32 (10, 768) and (10, 512); origin in NOTICE."""
