"""Features of frozen towers on disk: what never changes is computed once."""
