"""Data: a source returns pictures in memory as uint8, split into a training and a held-out set."""
