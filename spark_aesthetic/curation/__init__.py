"""From scores to a training set: labels, thresholds, quality, export."""
