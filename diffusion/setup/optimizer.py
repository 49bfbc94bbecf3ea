"""Optimizers and learning-rate schedules that a config may name, all from optax, and which parameters they train."""
import re

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from diffusion.errors import check_positive, InputError
from diffusion.setup import specs


# ---- optimizers: (rate, mask) -> optax transformation; mask: params -> which of them decay, or None for all
def _check(name, **shares):
  for key, value in shares.items():
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
      raise InputError(f'{name}({key}={value!r}): expected a number from 0 to below 1')


def _check_decay(name, weight_decay):
  if isinstance(weight_decay, bool) or not isinstance(weight_decay, (int, float)) or not 0 <= weight_decay < np.inf:
    raise InputError(f'{name}(weight_decay={weight_decay!r}): expected a number of at least 0')


def adamw(b1=.9, b2=.999, eps=1e-8, weight_decay=0., vectors=True):
  """Adam with decoupled weight decay (arXiv:1711.05101), of biases and gains too unless vectors=False."""
  _check('adamw', b1=b1, b2=b2)
  check_positive('adamw', eps=eps)
  _check_decay('adamw', weight_decay)
  if not isinstance(vectors, bool):
    raise InputError(f'adamw(vectors={vectors!r}): expected True or False')
  chosen = lambda mask: mask if vectors else lambda params: jax.tree.map(lambda a: a.ndim > 1, params)
  return lambda rate, mask=None: optax.adamw(rate, b1, b2, eps, weight_decay=weight_decay, mask=chosen(mask))


def adam(b1=.9, b2=.999, eps=1e-8):
  """Adam (arXiv:1412.6980)."""
  _check('adam', b1=b1, b2=b2)
  check_positive('adam', eps=eps)
  return lambda rate, mask=None: optax.adam(rate, b1, b2, eps)


def radam(b1=.9, b2=.999, eps=1e-8):
  """Rectified Adam, which needs no warm-up (arXiv:1908.03265)."""
  _check('radam', b1=b1, b2=b2)
  check_positive('radam', eps=eps)
  return lambda rate, mask=None: optax.radam(rate, b1, b2, eps)


def sgd(momentum=.9, nesterov=False):
  """Stochastic gradient descent with momentum."""
  _check('sgd', momentum=momentum)
  return lambda rate, mask=None: optax.sgd(rate, momentum, nesterov)


def lion(b1=.9, b2=.99, weight_decay=0.):
  """Sign of an interpolated momentum (arXiv:2302.06675); its rate is a tenth to a third of Adam's."""
  _check('lion', b1=b1, b2=b2)
  _check_decay('lion', weight_decay)
  return lambda rate, mask=None: optax.lion(rate, b1, b2, weight_decay=weight_decay, mask=mask)


def muon(beta=.95, b2=.99, weight_decay=0., rms=.2):
  """Orthogonalised momentum for kernels, convolutions taken as matrices [k * k * C, F]; for everything else AdamW.

  Both with Nesterov momentum, as optax has them (https://kellerjordan.github.io/posts/muon).

  Args:
    beta: momentum of the kernels.   b2: of AdamW's second moment.   weight_decay: of both.
    rms: root mean square of a kernel's update before the learning rate, as AdamW's is (arXiv:2502.16982, section 2.2).
  """
  _check('muon', beta=beta, b2=b2)
  check_positive('muon', rms=rms)
  _check_decay('muon', weight_decay)
  def make(rate, mask=None):
    return contrib.muon(rate, beta=beta, adam_b2=b2, weight_decay=weight_decay, adam_weight_decay=weight_decay,
                        weight_decay_mask=mask, muon_weight_dimension_numbers=_as_matrices, consistent_rms=rms)
  return make


def _as_matrices(params):
  """For each kernel [.., C, F] its dimensions as a matrix [everything else, F]; None for anything else."""
  def dimensions(path, leaf):
    is_kernel = 'kernel' in str(getattr(path[-1], 'key', '')) and leaf.ndim >= 2
    return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1) if is_kernel else None
  return jax.tree_util.tree_map_with_path(dimensions, params)


OPTIMIZERS = dict(adamw=adamw, adam=adam, radam=radam, sgd=sgd, lion=lion, muon=muon)
# Parameters that are not the network's: weight decay leaves them alone.
UNDECAYED = ('uncertainty', 'curve', 'logit_scale', 'logit_bias', 'log_scale')


# ---- groups of parameters
def parse_groups(text):
  """'adamw(b2=.99) | disc: adam' -> {'': (rate, mask) -> transformation, 'disc': ..}."""
  groups = {}
  for part in text.split('|'):
    group, colon, spec = part.partition(':')
    group, spec = (group.strip(), spec.strip()) if colon else ('', part.strip())
    if group in groups:
      raise InputError(f'config.optimizer={text!r}: give one optimizer for {group or "the parameters without a group"}')
    groups[group] = specs.resolve(dict(optimizer=OPTIMIZERS), 'optimizer', spec)
  if '' not in groups:
    raise InputError(f'config.optimizer={text!r}: begin with an optimizer for the parameters without a group')
  return groups


def optimizer(optimizers, rate, grad_clip, params, group):
  """The optax transformation of some parameters; gradients are clipped by the norm of their group.

  Args:
    optimizers: of parse_groups.
    rate: step -> learning rate.
    grad_clip: largest norm of a group's gradient; 0: none.
    params: tree of the parameters or their shapes.
    group: path -> name of its group, '' for none.
  Raises:
    InputError: a group of the config that has no parameters, or the reverse.
  """
  undecayed = isinstance(params, dict) and any(key in params for key in UNDECAYED)
  mask = (lambda params: {key: key not in UNDECAYED for key in params}) if undecayed else None
  # Clipping is always there, so that the state keeps its shape.
  one = lambda name: optax.chain(optax.clip_by_global_norm(grad_clip or np.inf), optimizers[name](rate, mask))
  names = {group(path) for path in paths(params)}
  if names == {''} == set(optimizers):
    return one('')
  if names != set(optimizers):
    show = lambda some: ', '.join(sorted(name or '(no name)' for name in some))
    raise InputError(f'config.optimizer names the groups {show(optimizers)}, and the objective has {show(names)}; '
                     "give one optimizer for each, such as 'adamw | disc: adam'")
  labels = lambda params: jax.tree_util.tree_map_with_path(lambda path, _: group(path_text(path)), params)
  return optax.multi_transform({name: one(name) for name in names}, labels)


def path_text(path):
  """The path of a leaf, such as 'conv_in/kernel'."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def paths(params):
  """The paths of all leaves."""
  return [path_text(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]


def trainable(pattern, params):
  """params -> (those that are trained, the rest or ()), by a regular expression for paths such as 'conv_in/kernel'.

  Args:
    pattern: '' for all.
    params: tree of dicts, of the parameters or their shapes.
  Raises:
    InputError: a pattern that is no regular expression, or matches none or all of the parameters.
  """
  if not pattern:
    return lambda params: (params, ())
  try:
    found = {path for path in paths(params) if re.search(pattern, path)}
  except re.error as error:
    raise InputError(f'config.trainable={pattern!r} is not a regular expression: {error}') from error
  if not found or len(found) == len(paths(params)):
    some = ', '.join(paths(params)[:4])
    raise InputError(f"config.trainable={pattern!r} matches {'all' if found else 'none'} of the parameters, such as "
                     f'{some}; leave it empty to train all of them')

  def split(params):
    flat = traverse_util.flatten_dict(params, sep='/')
    pick = lambda wanted: {path: leaf for path, leaf in flat.items() if (path in found) == wanted}
    return tuple(traverse_util.unflatten_dict(pick(wanted), sep='/') for wanted in (True, False))
  return split


def merged(params, base):
  """The parameters that `trainable` has split."""
  if not jax.tree.leaves(base):
    return params
  flat = [traverse_util.flatten_dict(part, sep='/') for part in (params, base)]
  return traverse_util.unflatten_dict(flat[0] | flat[1], sep='/')


# ---- learning-rate schedules: (peak, steps) -> step -> rate
def _warming(warmup, peak):
  if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
    raise InputError(f'warmup={warmup!r}: expected a whole number of steps from 0 up')
  return dict(init_value=peak / max(warmup, 1), peak_value=peak, warmup_steps=warmup)  # never a step that does nothing


def _falling(warmup, peak, steps, fall):
  """step -> rate: a rise, then fall(share of the steps after it); steps may be traced, as the step is."""
  rise, length = optax.linear_schedule(peak / max(warmup, 1), peak, max(warmup, 1)), jnp.maximum(steps - warmup, 1)
  return lambda step: jnp.where(step < warmup, rise(step), fall(jnp.clip((step - warmup) / length, 0, 1)))


def cosine(warmup=100):
  """A linear rise over `warmup` steps, then half a cosine to 0 at the last step."""
  _warming(warmup, 1.)
  def make(peak, steps):
    return _falling(warmup, peak, steps, lambda share: peak * .5 * (1 + jnp.cos(np.pi * share)))
  return make


def constant(warmup=100):
  """A linear rise over `warmup` steps, then the same rate to the end."""
  _warming(warmup, 1.)
  return lambda peak, steps: optax.warmup_constant_schedule(**_warming(warmup, peak))


def linear(warmup=100):
  """A linear rise over `warmup` steps, then a straight line to 0 at the last step."""
  _warming(warmup, 1.)
  def make(peak, steps):
    return _falling(warmup, peak, steps, lambda share: peak * (1 - share))
  return make


LR_SCHEDULES = dict(cosine=cosine, constant=constant, linear=linear)
