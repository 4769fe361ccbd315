"""Pure scores: from evidence to how much each token matters, higher = more."""
