"""Extractors, which turn images into the features that metrics compare."""
from typing import Any, Callable, NamedTuple


class Features(NamedTuple):
  """Features of a batch of images."""
  points: Any       # float32 [B, D]
  logits: Any = None  # float32 [B, K] if the extractor is a classifier, else None


class Extractor(NamedTuple):
  """A network that computes features of images."""
  name: str        # such as 'own' or 'inception'
  digest: str      # hash of the weights and of the preprocessing
  resize: str      # how images are resized, such as 'none' or 'bilinear 299'
  size: int        # D
  classes: tuple   # names of the logits; () if they are not classes of the data
  params: Any      # weights, a tree of arrays
  apply: Callable  # (params, uint8 [B, H, W, C]) -> Features; traced
