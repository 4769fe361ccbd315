"""One process a side, fed jobs line by line; the peers' import nothing of Tithe."""
