"""Data: a source returns named columns, in memory or streamed, split into a training and a held-out set.

To add a source, write a function that returns a Source (see sources.py for images) and list it here.
"""
from diffusion.data import pairs, phantoms, points, series, sources, tables, texts, volumes

SOURCES = dict(sprites=sources.sprites, digits=sources.digits, npy=sources.npy, npz=sources.npz, folder=sources.folder,
               tfds=sources.tfds, points=points.points,
               waves=series.waves, series=series.series, csv=tables.csv, patients=tables.patients,
               text=texts.text, phantoms=phantoms.phantoms, pairs=pairs.pairs,
               nifti=volumes.nifti, brain=volumes.brain)
