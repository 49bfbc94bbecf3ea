"""Tasks: how a batch becomes (x0, cond), and how x0 becomes something to look at. One file per family."""
from typing import Callable, NamedTuple


class Task(NamedTuple):
  encode: Callable  # (key, batch) -> (x0 float32 [B, ...], cond [B, ...] or None); key None: no augmentation
  null: Callable    # cond -> the unconditional cond, of the same shapes
  decode: Callable  # x0 -> what a person looks at
