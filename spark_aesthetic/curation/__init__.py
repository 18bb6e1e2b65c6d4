"""From scores to a training set: labels, cuts, quality, export."""
