"""Data: a source returns uint8 images, in memory or streamed, split into a training and a held-out set.

To add a source, write a function that returns a Source (see sources.py) and list it here.
"""
from diffusion.data import sources

SOURCES = dict(sprites=sources.sprites, digits=sources.digits, npy=sources.npy, npz=sources.npz, folder=sources.folder,
               tfds=sources.tfds)
