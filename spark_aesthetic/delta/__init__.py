"""Delta tables through Spark; knows nothing of predictors or scores."""
