"""Recipes, heads and weights of predictors. Uses no Spark, and imports torch only when a function needs it."""
