"""Power-function averages of the parameters, of any width, after training, from snapshots.

EDM2, arXiv:2312.02696, section 3.2.
"""
from functools import partial

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.core.ema import weights_of
from diffusion.errors import InputError
from diffusion.setup import specs
from diffusion.setup.choices import parse_emas
from diffusion.system.checkpoint import open_checkpoints

# Relative residuals of the profile above which to warn and to refuse. The error of the parameters is about a tenth of
# the residual (measured: 6e-4 for .0085).
WARN, REFUSE = .01, .1


@partial(jax.jit, donate_argnums=0)
def _add(total, weight, tree):
  return jax.tree.map(lambda t, a: t + weight * a, total, tree)


def reconstruct(snapshots, weights):
  """The weighted sum of trees of equal shapes, of which one is read at a time.

  Args:
    snapshots: iterator of trees of float32 arrays, in the order of the weights.
    weights: of weights_of. Their absolute values add up to 2 for widths between those kept, and to 12 for .03 from .05
      and .1, so that float32 is accurate to 1e-6.
  Returns:
    A tree of the same shapes and shardings.
  """
  total = None
  for tree, weight in zip(snapshots, weights, strict=True):
    total = _add(jax.tree.map(jnp.zeros_like, tree) if total is None else total, np.float32(weight), tree)
  return total


def posthoc(workdir, abstract, averages_text, sigma_rel, step=None):
  """The power-function average of any width, from the snapshots of a training run.

  Args:
    workdir: of the run; the snapshots are in its folder snapshots/.
    abstract: tree of ShapeDtypeStruct of the parameters, with or without shardings.
    averages_text: config.extra_emas of the run.
    sigma_rel: the width, in (0, 0.2887).
    step: training step at which the average ends; None: that of the last snapshot.
  Returns:
    The averaged parameters.
  Raises:
    InputError: the run has no power average or no snapshots, the step is after the last one, the width is too far from
      those tracked.
  """
  kinds = [specs.parse(name) for name, _ in parse_emas(averages_text)]
  powers = {i: args[0] for i, (kind, args, _) in enumerate(kinds) if kind == 'power'}
  if not powers:
    raise InputError(f'config.extra_emas={averages_text!r} has no power average; train with '
                     "config.extra_emas='power(0.05) | power(0.1)' and config.snapshot_every above 0")
  checkpoints = open_checkpoints(epath.Path(workdir) / 'snapshots')
  steps, step = _snapshot_steps(workdir, checkpoints, step)
  weights, error = weights_of([(at, width) for at in steps for width in powers.values()], (step, sigma_rel))
  problem = (f'a power average of width {sigma_rel:g} at step {step}, from {len(steps)} snapshots of {averages_text}, '
             f'deviates from its profile by {error:.1%}')
  if error > REFUSE:
    raise InputError(f'{problem}; choose a width closer to those, or the step of a snapshot, or train with a smaller '
                     'config.snapshot_every')
  if error > WARN:
    logging.warning('%s: the parameters are accurate to a few thousandths; train with a smaller config.snapshot_every',
                    problem)

  def read(at):
    averages = checkpoints.restore((abstract,) * len(kinds), at).state
    return [averages[i] for i in powers]
  return reconstruct((tree for at in steps for tree in read(at)), weights)


def _snapshot_steps(workdir, checkpoints, step):
  """(steps of the snapshots to use, step at which the average ends)."""
  steps = [at for at in checkpoints.steps() if at > 0]
  if not steps:
    raise InputError(f'{workdir} holds no snapshots; train with config.snapshot_every, such as config.steps // 50')
  step = steps[-1] if step is None else step
  if not 1 <= step <= steps[-1]:
    raise InputError(f'step {step} is outside the snapshots in {workdir}, from {steps[0]} to {steps[-1]}; '
                     'choose a step in that range')
  return steps[:np.searchsorted(steps, step) + 1], step  # later snapshots add no information
