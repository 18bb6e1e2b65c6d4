"""What a score is: recipes, heads and weights. No Spark, and no torch at import."""
