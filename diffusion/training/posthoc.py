"""Power-function averages of the weights, of any width, after training: from snapshots (EDM2, arXiv:2312.02696, section 3.2)."""
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

GOOD, POOR = .01, .1  # residuals of the profile; the weights come ten times nearer (measured: .0085 gives 6e-4)


@partial(jax.jit, donate_argnums=0)
def _add(total, weight, tree):
  return jax.tree.map(lambda t, a: t + weight * a, total, tree)


def reconstruct(snapshots, weights):
  """The weighted sum of trees of equal shapes, read one at a time.

  Args:
    snapshots: iterator of trees of float32 arrays, in the order of the weights.
    weights: as weights_of gives them. Their sizes add up to 2 for widths between those kept, and to 12 for .03 from .05
      and .1, so that float32 is good to 1e-6.
  Returns:
    A tree of the same shapes; it lies on the devices as the snapshots do.
  """
  total = None
  for tree, weight in zip(snapshots, weights, strict=True):
    total = _add(jax.tree.map(jnp.zeros_like, tree) if total is None else total, np.float32(weight), tree)
  return total


def posthoc(workdir, abstract, averages_text, sigma_rel, step=None):
  """The power average of any width from the snapshots of a training.

  Args:
    workdir: of the training; the snapshots are in its folder snapshots/.
    abstract: tree of ShapeDtypeStruct of the parameters, with shardings if wanted.
    averages_text: config.extra_emas of the training.
    sigma_rel: wanted width, in (0, 0.2887).
    step: of the training at which the average ends; None: the last snapshot's.
  Returns:
    The averaged parameters.
  Raises:
    InputError: no power average in the training, no snapshots, a step after the last, a width out of reach.
  """
  kinds = [specs.parse(name) for name, _ in parse_emas(averages_text)]
  powers = {i: args[0] for i, (kind, args, _) in enumerate(kinds) if kind == 'power'}
  if not powers:
    raise InputError(f'config.extra_emas={averages_text!r} has no power average to start from; train with '
                     "config.extra_emas='power(0.05) | power(0.1)' and config.snapshot_every above 0")
  checkpoints = open_checkpoints(epath.Path(workdir) / 'snapshots')
  steps = [at for at in checkpoints.steps() if at > 0]
  if not steps:
    raise InputError(f'{workdir} holds no snapshots; train with config.snapshot_every, such as config.steps // 50')
  step = steps[-1] if step is None else step
  if not 1 <= step <= steps[-1]:
    raise InputError(f'step {step} is outside the snapshots in {workdir}, which go from {steps[0]} to {steps[-1]}; '
                     'choose one of these')
  steps = steps[:np.searchsorted(steps, step) + 1]  # what comes later tells nothing more
  weights, error = weights_of([(at, width) for at in steps for width in powers.values()], (step, sigma_rel))
  told = (f'a power average of width {sigma_rel:g} at step {step}, from {len(steps)} snapshots of {averages_text}, '
          f'misses its profile by {error:.1%}')
  if error > POOR:
    raise InputError(f'{told}; choose a width nearer to those, or a step of a snapshot, or train with a smaller '
                     'config.snapshot_every')
  if error > GOOD:
    logging.warning('%s: the weights are good to some thousandths; a smaller config.snapshot_every is better', told)

  def read(at):
    found = checkpoints.restore((abstract,) * len(kinds), at).state
    return [found[i] for i in powers]
  return reconstruct((tree for at in steps for tree in read(at)), weights)
