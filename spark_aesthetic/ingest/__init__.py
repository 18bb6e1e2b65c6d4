"""Images from folders, shards and addresses into a table."""
