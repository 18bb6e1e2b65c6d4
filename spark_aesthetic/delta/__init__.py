"""Read and write Delta tables through Spark. Nothing here imports the code of predictors or of scoring."""
