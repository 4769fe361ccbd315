"""Tasks by name, each for one kind of model."""
