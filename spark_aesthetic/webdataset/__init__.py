"""Shards of WebDataset as a data source of Spark's."""
