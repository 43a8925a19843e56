"""Images of known identities: the index that readers fill, samplers, transforms and the data module."""
