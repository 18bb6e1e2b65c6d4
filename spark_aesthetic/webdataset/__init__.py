"""A Spark data source for WebDataset shards."""
