"""From scores to a training set: own heads, cuts, review, shards."""
