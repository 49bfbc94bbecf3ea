"""Tasks: how a batch becomes (x0, cond), and how an x0 becomes something to look at. One file a task."""
from typing import Callable, NamedTuple


class Task(NamedTuple):
  encode: Callable  # (key, batch) -> (x0 [B, ...] float32, cond)
  null: Callable    # cond -> the unconditional cond, same shapes
  decode: Callable  # x0 -> what a person looks at
