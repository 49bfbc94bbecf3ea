"""What turns pictures into the features that metrics compare."""
from typing import Any, Callable, NamedTuple


class Features(NamedTuple):
  """What an extractor sees in pictures."""
  points: Any       # float32 [B, D]
  logits: Any = None  # float32 [B, K] of a classifier, else None


class Extractor(NamedTuple):
  """A network that looks at pictures."""
  name: str        # such as 'own' or 'inception'
  digest: str      # hash of the weights and of what is done to a picture before them
  resize: str      # what is done to a picture's size, such as 'none' or 'bilinear 299'
  size: int        # D
  classes: tuple   # names of the logits; () where they are not those of the data
  params: Any      # weights, a tree of arrays
  apply: Callable  # (params, uint8 [B, H, W, C]) -> Features; traced
