"""One paper, one small file. Whatever lies here is in the catalogue."""
