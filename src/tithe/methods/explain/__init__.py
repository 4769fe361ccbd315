"""Show which tokens matter: methods that stop at the scores."""
