"""Read with fewer tokens: the key-value cache and the prompt."""
