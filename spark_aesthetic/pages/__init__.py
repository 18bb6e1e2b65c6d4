"""Pages that show images with their scores."""
