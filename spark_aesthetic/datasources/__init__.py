"""Python data sources: other formats as tables, read and written by Spark."""
