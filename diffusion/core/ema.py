"""Exponential moving averages (EMA) of the parameters: decay rates, and averages of any width from snapshots.

The power-function average (Karras et al., EDM2, arXiv:2312.02696, section 3) weights the parameters theta(tau) of a
training run of t steps by tau^gamma: the same profile, stretched to the length of the run. Its width sigma_rel is the
standard deviation of that profile over t. From snapshots of one or two such averages, at several times, the average of
any other width is a weighted sum: the one whose profile is nearest in least squares (section 3.2 and appendix C).

With beta as below, the discrete average after t updates is exactly the continuous one of parameters that are constant
between updates. So what holds in closed form for continuous profiles holds for a training run.
"""
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError

WIDEST = 12 ** -.5     # sigma_rel of gamma = 0, the plain mean of all steps


# ---- averages kept during training: step -> decay of the update after that step
def warmed_up(value):
  """step -> min(value, (1 + step) / (10 + step)), so that early parameters are forgotten; config.ema_decay uses it."""
  return lambda step: jnp.minimum(value, (1. + step) / (10. + step))


def decay(value):
  """The same with a check. value: in (0, 1)."""
  if not 0 < value < 1:
    raise InputError(f'decay({value!r}): expected a number between 0 and 1, such as 0.9999')
  return warmed_up(value)


def power(sigma_rel):
  """step -> beta = (1 - 1/t)^(gamma + 1), t = step + 1 (arXiv:2312.02696, section 3.1), which starts at 0.

  Args:
    sigma_rel: relative width, in (0, 0.2887); .05 and .1 are the pair from which other widths are reconstructed.
  """
  gamma = exponent(sigma_rel)
  # With expm1: at a million steps in float32, 1 - beta is off by 1e-3 as a power of 1 - 1/t, and by 1e-5 like this.
  return lambda step: 1 + jnp.expm1((gamma + 1) * jnp.log1p(-1 / (step + 1.)))


# ---- profiles
def exponent(sigma_rel):
  """gamma of the profile whose relative standard deviation is sigma_rel.

  The profile on [0, 1] is the Beta(gamma + 1, 1) distribution: sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma +
  3)).

  Raises:
    InputError: sigma_rel outside (0, 0.2887), where gamma would not be above 0.
  """
  if not 0 < sigma_rel < WIDEST:
    raise InputError(f'a power average of relative width {sigma_rel!r}: expected a number above 0 and below '
                     f'{WIDEST:.4f}, such as 0.05 or 0.1')
  s = float(sigma_rel) ** -2
  return float(np.roots([1, 7, 16 - s, 12 - s]).real.max())


def profile_overlap(t_a, gamma_a, t_b, gamma_b):
  """The integral of the product of two profiles (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]. Arrays broadcast."""
  low = np.minimum(t_a, t_b)
  scale = (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1)
  return scale * (low / t_a) ** gamma_a * (low / t_b) ** gamma_b / np.maximum(t_a, t_b)


def weights_of(snapshots, target):
  """The weights with which snapshots of power averages add up to another power average.

  Args:
    snapshots: list of (step, sigma_rel), step >= 1 the number of updates done; all different.
    target: the (step, sigma_rel) to reconstruct.
  Returns:
    (weights float64 [n], error): weights that sum to 1, so that constant parameters are reproduced, and minimise
    the squared difference of the profiles; error is the norm of that difference over the norm of the target
    profile, to 1e-8.
  Raises:
    InputError: a width that no power average has.
  """
  times, gammas = np.array([(step, exponent(sigma_rel)) for step, sigma_rel in snapshots], np.float64).T
  profile = float(target[0]), exponent(target[1])
  gram = profile_overlap(times[:, None], gammas[:, None], times, gammas)
  projections, squared_norm = profile_overlap(times, gammas, *profile), profile_overlap(*profile, *profile)
  # Least squares with one Lagrange multiplier, for the weights of profiles of length 1: the system is nearly singular
  # where snapshots are dense, and lstsq ignores directions that cannot be resolved. The constraint on the sum is not
  # in the paper; it improves wide averages (measured, .15 from 10 snapshots: 3.7e-3 to 1.6e-3).
  n, length = len(times), np.sqrt(np.diag(gram))
  system = np.zeros((n + 1, n + 1))
  system[:n, :n] = gram / np.outer(length, length)
  system[n, :n] = system[:n, n] = length.min() / length
  solution = np.linalg.lstsq(system, np.append(projections / length, length.min()), rcond=None)[0]
  weights = solution[:n] / length
  difference = weights @ gram @ weights - 2 * weights @ projections + squared_norm
  return weights, float(np.sqrt(max(difference, 0) / squared_norm))
