"""Read and write Delta tables through Spark. Nothing here depends on predictors or scores."""
