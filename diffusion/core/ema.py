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

from diffusion.errors import check_positive, InputError

WIDEST = 12 ** -.5     # sigma_rel of gamma = 0, the plain mean of all steps


# ---- averages kept during training: step -> decay of the update after that step
def warmed_up(value):
  """step -> min(value, (1 + step) / (10 + step)), so that early parameters are forgotten; config.ema_decay uses it."""
  return lambda step: jnp.minimum(value, (1. + step) / (10. + step))


def decay(value, after=0):
  """The same with a check.

  Args:
    value: in (0, 1).
    after: steps before the average begins; until then it is a copy of the parameters ("update_after_step").
  """
  if not 0 < value < 1:
    raise InputError(f'decay({value!r}): expected a number between 0 and 1, such as 0.9999')
  return _after('decay', after, warmed_up(value))


def _after(name, steps, rule):
  """The rule delayed by some steps, in which the average is a copy of the parameters."""
  if isinstance(steps, bool) or steps < 0 or steps != int(steps):
    raise InputError(f'{name}(after={steps!r}): expected a number of steps of at least 0')
  return (lambda step: jnp.where(step < steps, 0., rule(step - steps))) if steps else rule


def warmup(value=.9999, inv_gamma=1., power=2 / 3, least=0., after=0):
  """step -> 1 - (1 + t / inv_gamma)^-power, t = step - after, between `least` and `value` (k-diffusion, diffusers).

  Up to t = 0 the average is a copy of the parameters. power = inv_gamma = value = 1 is the mean of those after t = 0.

  Args:
    value, least: largest and smallest decay, 0 <= least <= value <= 1.
    inv_gamma, power: above 0; 1 and 2/3 for a million steps or more (0.9999 at 1M), 1 and 3/4 for fewer (at 215k).
  """
  check_positive('warmup', inv_gamma=inv_gamma, power=power)
  if not 0 <= least <= value <= 1 or not value:
    raise InputError(f'warmup({value!r}, least={least!r}): expected 0 <= least <= value <= 1, and a value above 0')
  def rule(t):
    rise = -jnp.expm1(-power * jnp.log1p(jnp.maximum(t, 0) / inv_gamma))
    return jnp.where(t > 0, jnp.clip(rise, least, value), 0.)
  return _after('warmup', after, rule)


def halflife(images=500_000., rampup=.05, *, batch=1):
  """step -> 2^(-batch / h), h = min(images, rampup * images seen before this batch) (the code of arXiv:2206.00364).

  Args:
    images: training images after which half of an old value is left; 'inf': only rampup counts.
    rampup: h as a share of the training so far, so that early parameters are forgotten; None: none. EDM2's code has
      0.09, infinite images, and counts this batch too.
    batch: images of a step; config.batch if it is not given.
  """
  check_positive('halflife', batch=batch, **{} if rampup is None else dict(rampup=rampup))
  images = float(images)
  if not images > 0:
    raise InputError(f'halflife({images!r}): expected a number of images above 0')
  def rule(step):
    seen = batch * jnp.asarray(step, jnp.float32)
    return jnp.exp2(-batch / (images if rampup is None else jnp.clip(rampup * seen, 1e-8, images)))
  return rule


def power(sigma_rel):
  """step -> beta = (1 - 1/t)^(gamma + 1), t = step + 1 (arXiv:2312.02696, section 3.1), which starts at 0.

  EDM2's code counts images, which is the same as long as the batch does not change.

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
