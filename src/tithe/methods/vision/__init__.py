"""See with fewer tokens: image patches before, inside and after the encoder."""
