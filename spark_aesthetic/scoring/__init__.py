"""Score Delta tables, chunk by chunk."""
