"""What an evaluator is: one way to measure a model. A task names those that fit its data."""
from typing import Callable, NamedTuple

import numpy as np

from diffusion.data.dataset import size


class Measured(NamedTuple):
  """What an evaluator has measured."""
  metrics: dict        # name -> Estimate
  protocol: dict       # {metric or 'samples': how it was measured}, for the record
  details: dict = {}   # more of the record
  heldout: dict = {}   # name -> Estimate of held-out data in place of samples
  notes: tuple = ()    # lines for the user


class Evaluator(NamedTuple):
  """One way to measure a model."""
  needs: Callable    # (run, data: Source) -> '' or the reason why it cannot be measured
  measure: Callable  # (run, weights, data, folder, report) -> Measured; may write pictures into the folder
  prepare: Callable = lambda run, data: None  # before anything is trained or drawn; raises InputError


def columns(data):
  """The columns of a Dataset that identify it: its images, or else all of them."""
  if 'images' in data.arrays:
    return [data.arrays['images']]
  numbers = lambda column: column if column.dtype.kind in 'biufc' else np.array([str(text) for text in column])
  return [numbers(column) for column in data.arrays.values()]


def needs_heldout(data):
  """A reason where there is nothing held out."""
  return '' if size(data.heldout) else 'this data set has no held-out examples'


def first(*reasons):
  """The first reason that is not empty."""
  return next(filter(None, reasons), '')


def needs_likelihood(run, data):
  """A reason where bits per dimension have no meaning."""
  return first(
    '' if 'denoise' in run.can else f'the objective {run.objective.name} draws nothing',
    'the likelihood takes a model without self-conditioning' if run.self_condition else '',
    'the bits of latents lack the part of their autoencoder' if 'autoencoder' in run.task.facts else '',
    '' if run.task.levels else 'x0 is continuous and has no bits',
    'x0 lives in a subspace' if run.task.project else '', needs_heldout(data))
