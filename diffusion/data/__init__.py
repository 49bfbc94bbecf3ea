"""Data: a source returns uint8 images, in memory or streamed, split into a training and a held-out set."""
