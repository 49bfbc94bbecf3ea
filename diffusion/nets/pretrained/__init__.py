"""Published networks whose weights are read from files, for inference."""
