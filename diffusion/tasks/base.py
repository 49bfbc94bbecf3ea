"""What a task is: all that depends on the kind of data. One file per family."""
from typing import Any, Callable, NamedTuple

import jax
import numpy as np

from diffusion.errors import InputError


class Asked(NamedTuple):
  """What was asked for, as the model takes it."""
  cond: Any          # tree of NumPy arrays [N, ...], or None
  labels: Any        # N captions, or None
  shape: Any = None  # of one x0, where it is not that of training
  notes: tuple = ()  # lines for the user: what of the request is lost


def blend(a, b, shares):
  """(1 - share) a + share b of trees [1, ...], for each of the shares [N]: a tree [N, ...], float32."""
  def one(a, b):
    w = np.reshape(shares, (-1,) + (1,) * (a.ndim - 1))
    return ((1 - w) * a + w * b).astype(np.float32)
  return jax.tree.map(one, a, b)


class Task(NamedTuple):
  """What the data mean: how a batch becomes (x0, cond), and an x0 something to look at, hear or read.

  It is made by a function f(.., *, data=None, facts=None, fitted=None, open_model=None), which takes those that it
  needs: with data (the Dataset to train on) it measures `facts` and, unless it is given, `fitted`; with those of a
  checkpoint it needs no data; with neither it only checks its arguments.
  """
  batch: Callable      # (Dataset, indices [B]) -> dict of host arrays [B, ...]; sent to workers: holds no weights
  encode: Callable     # (frozen, key, batch) -> (x0 [B, ...], cond: tree [B, ...] or None); key None: no randomness
  null: Callable       # cond -> the same as if nothing were asked
  decode: Callable     # (frozen, x0, cond) -> outputs {name: array [B, ...], or a tree of them}
  ask: Callable        # (request {name: text or array}, ids [N], seed) -> Asked; entry k depends on (seed, ids[k])
  show: Callable       # (outputs, labels or None, title) -> a page, PIL image
  save: Callable       # (folder, outputs, cond, labels) -> None: writes files
  facts: dict = {}     # JSON: what the weights mean; in the checkpoint, equal on resume
  fitted: dict = {}    # {name: NumPy array} measured on the data; in the checkpoint
  frozen: Any = ()     # given weights: an argument of compiled functions, in the checkpoint by their hash alone
  prepare: Callable = lambda frozen, data: data  # Dataset -> Dataset: what is computed once per example (prepare.py)
  tiles: Callable = None    # outputs -> uint8 [N, H, W, C], a picture of each, for strips; None: there are none
  takes: tuple = ()         # names that `ask` understands
  gives: str = ''           # name of the output that diffusion.draw returns and the next model of a chain gets
  result: Callable = None   # outputs -> that output as a user reads it, such as texts; None: as it is
  bounds: Any = None        # (low, high) of x0, for clipping; None: unbounded, never clipped
  levels: Any = None        # number of values of x0 between the bounds; None: continuous
  categories: Any = None    # of integer entries of x0: how many values each has, one number or one for each of the last
                            # axis; None: x0 has none
  project: Callable = None  # (x, cond) -> x, linear: the subspace x0 lives in, such as without padding; None: all
  coarse: Callable = None   # (mask of an image, bool [H, W, 1]; shape of x0) -> that of x0, where it is no image
  painted: Callable = None  # (frozen, image uint8 [1, H, W, C], mask bool [H, W, 1], cond) -> cond, of a network that
                            # is told what to paint and what is kept; None: it is not
  embed: Callable = None    # images uint8 [B, H, W, C] -> unit vectors [B, D], where they are a condition
  score: Callable = None    # (outputs, cond) -> [B], higher is better: how well they do what was asked, for
                            # config.sample.best_of
  between: Callable = blend  # conditions [1, ...] and [1, ...] -> [N, ...] on the way
  evaluators: tuple = ()    # names of what measures it (evaluation.EVALUATORS)

  def given(self, outputs):
    """What `gives` names, as a user reads it."""
    return self.result(outputs) if self.result else outputs[self.gives]

  @property
  def classes(self):
    """Names of the classes, () if there are none."""
    return tuple(self.facts.get('classes', ()))


def need(data, *columns):
  """Raises InputError where the data lacks a column that a task needs."""
  missing = [name for name in columns if name not in data.arrays]
  if missing:
    raise InputError(f'it needs the column {" and ".join(missing)}, and config.data has {", ".join(data.arrays)}; '
                     'choose a task for these data')
