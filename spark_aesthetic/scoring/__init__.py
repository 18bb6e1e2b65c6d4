"""Score tables: what a run does, chunk by chunk."""
