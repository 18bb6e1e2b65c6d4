"""Load images from folders, WebDataset shards and addresses into a Delta table."""
