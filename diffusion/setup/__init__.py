"""From a config, a tree of strings and numbers, to objects."""
