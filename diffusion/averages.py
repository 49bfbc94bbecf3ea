"""Averages of the weights beside the main one, and power-function averages of any width after training.

The power-function average (Karras et al., EDM2, arXiv:2312.02696, section 3) weighs the parameters theta(tau) of a
training of t steps by tau^gamma: the same profile, stretched, however long the training is. Its width sigma_rel is the
standard deviation of that profile over t. From snapshots of one or two of them, at several times, the average of any
other width is a weighted sum: the one whose profile is nearest to the wanted one in least squares (section 3.2 and
appendix C).

With beta as below, the discrete average after t updates is exactly the continuous one of parameters that stay what
they are from one update to the next. So what holds for continuous profiles, in closed form, holds for a training.
"""
from functools import partial

from absl import logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from diffusion import specs
from diffusion.checkpoint import open_checkpoints
from diffusion.errors import InputError

WIDEST = 12 ** -.5     # sigma_rel of gamma = 0, the plain mean of all steps
GOOD, POOR = .01, .1   # residuals of the profile; the weights come ten times nearer (measured: .0085 gives 6e-4)


# ---- averages that training keeps
def decay(value):
  """step -> min(value, (1 + step) / (10 + step)), the average of config.ema. value: in (0, 1)."""
  if not 0 < value < 1:
    raise InputError(f'decay({value!r}): expected a number between 0 and 1, such as 0.9999')
  return lambda step: jnp.minimum(value, (1. + step) / (10. + step))


def power(sigma_rel):
  """step -> beta = (1 - 1/t)^(gamma + 1), t = step + 1 (arXiv:2312.02696, section 3.1); the first update replaces all.

  Args:
    sigma_rel: relative width, in (0, 0.2887); .05 and .1 are the pair that later widths are made from.
  """
  gamma = exponent(sigma_rel)
  # By expm1: in float32, the power of 1 - 1/t forgets 1e-3 too fast or too slowly at a million steps, this 1e-5.
  return lambda step: 1 + jnp.expm1((gamma + 1) * jnp.log1p(-1 / (step + 1.)))


def parse(text):
  """The averages that config.averages asks for.

  Args:
    text: such as 'decay(.9999) | power(.05) | power(.1)'; '' none.
  Returns:
    Tuple of (name, step -> decay): the name is canonical, such as 'power(0.05)'. After update number `step`, counted
    from 0, the average becomes decay * average + (1 - decay) * params.
  Raises:
    InputError: an unknown kind, a value out of range, or the same average twice.
  """
  found = {}
  for part in text.split('|') if text.strip() else ():
    rule = specs.resolve(dict(averages=dict(decay=decay, power=power)), 'averages', part.strip())
    kind, args, kwargs = specs.parse(part)
    name = f'{kind}({float([*args, *kwargs.values()][0])})'
    if name in found:
      raise InputError(f'config.averages={text!r}: {name} is there twice; give each average once')
    found[name] = rule
  return tuple(found.items())


# ---- profiles
def exponent(sigma_rel):
  """gamma of the profile whose relative standard deviation is sigma_rel.

  The profile on [0, 1] is the Beta(gamma + 1, 1) distribution: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).

  Raises:
    InputError: sigma_rel outside (0, 0.2887), where gamma would not be above 0.
  """
  if not 0 < sigma_rel < WIDEST:
    raise InputError(f'a power average of relative width {sigma_rel!r}: expected a number above 0 and below '
                     f'{WIDEST:.4f}, such as 0.05 or 0.1')
  s = float(sigma_rel) ** -2
  return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def inner(t_a, gamma_a, t_b, gamma_b):
  """The integral of the product of two profiles (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. Arrays broadcast."""
  low = np.minimum(t_a, t_b)
  scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
  return scale * (low / t_a) ** gamma_a * (low / t_b) ** gamma_b / np.maximum(t_a, t_b)


def weights_of(snapshots, target):
  """How snapshots of power averages are added up to another one.

  Args:
    snapshots: list of (step, sigma_rel), step >= 1 the number of updates done; all different.
    target: the wanted (step, sigma_rel).
  Returns:
    (weights float64 [n], error): weights that sum to 1, so that parameters that never moved come out as they are, and
    leave the least squared difference of the profiles; error, the norm of that difference over the norm of the wanted
    profile, to 1e-8.
  Raises:
    InputError: a width that no power average has.
  """
  times, gammas = np.array([(step, exponent(sigma_rel)) for step, sigma_rel in snapshots], np.float64).T
  wanted = float(target[0]), exponent(target[1])
  gram = inner(times[:, None], gammas[:, None], times, gammas)
  along, own = inner(times, gammas, *wanted), inner(*wanted, *wanted)
  # Least squares with one Lagrange multiplier, for the weights of profiles of length 1: the system is nearly singular
  # where snapshots are dense, and lstsq leaves out what cannot be told apart. That the sum is 1 goes beyond the paper;
  # it brings wide averages nearer (measured, .15 from 10 snapshots: 3.7e-3 to 1.6e-3).
  n, length = len(times), np.sqrt(np.diag(gram))
  system = np.zeros((n + 1, n + 1))
  system[:n, :n] = gram / np.outer(length, length)
  system[n, :n] = system[:n, n] = length.min() / length
  solution = np.linalg.lstsq(system, np.append(along / length, length.min()), rcond=None)[0]
  weights = solution[:n] / length
  squared = weights @ gram @ weights - 2 * weights @ along + own
  return weights, float(np.sqrt(max(squared, 0) / own))


# ---- trees
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
    averages_text: config.averages of the training.
    sigma_rel: wanted width, in (0, 0.2887).
    step: of the training at which the average ends; None: the last snapshot's.
  Returns:
    The averaged parameters.
  Raises:
    InputError: no power average in the training, no snapshots, a step after the last, a width out of reach.
  """
  kinds = [specs.parse(name) for name, _ in parse(averages_text)]
  powers = {i: args[0] for i, (kind, args, _) in enumerate(kinds) if kind == 'power'}
  if not powers:
    raise InputError(f'config.averages={averages_text!r} has no power average to start from; train with '
                     "config.averages='power(0.05) | power(0.1)' and config.snapshot_every above 0")
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
