"""Embeddings of time and of condition vectors."""
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets import layers


def sinusoidal(time, size, period=10000.0):
  """Sinusoidal embedding (Vaswani et al. 2017, section 3.5), sines before cosines as in Ho et al. 2020.

  Args:
    time: [B], any real number. size: even. period: the longest wavelength is about 2 pi period.
  Returns:
    [B, size], float32: sin(time * w_i), then cos(time * w_i), w_i = period^(-i/(size/2)).
  """
  return _waves(time, period ** (-np.arange(size // 2) / (size // 2)))


def fourier(time, size, bandwidth=16.0):
  """Random Fourier features (Tancik et al. 2020; Song et al. 2021) of time/1000, from one fixed draw.

  Args:
    time: [B], about 0 to 1000. size: even.
    bandwidth: standard deviation of the frequencies, in periods over [0, 1000].
  Returns:
    [B, size], float32.
  """
  frequencies = np.random.default_rng(0).normal(scale=bandwidth, size=size // 2)
  return _waves(time, 2 * np.pi / 1000 * frequencies)


def _waves(time, frequencies):
  angles = jnp.asarray(time, jnp.float32)[:, None] * jnp.asarray(frequencies, jnp.float32)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


KINDS = dict(sinusoidal=sinusoidal, fourier=fourier)


class Embedding(nn.Module):
  """Time [B] and condition -> [B, 4 * channels], float32.

  Fields:
    channels: size of the features of time; even.
    kind: 'sinusoidal' or 'fourier'.
  """
  channels: int
  kind: str

  @nn.compact
  def __call__(self, time, cond):
    """Embeds a batch.

    Args:
      time: [B].
      cond: None, [B, K], or a dict of
        'span': [B], a second time, embedded like the first and added;
        any other name: float [B, K], which enters linearly and without a bias.
    Raises:
      InputError: an entry has another rank or type, such as token ids.
    """
    dense = partial(layers.Dense, 4 * self.channels)

    def embed(time, name):
      h = dense(name=f'{name}0')(KINDS[self.kind](time, self.channels))
      return dense(name=f'{name}1')(nn.silu(h))

    h = embed(time, 'time')
    conds = cond if isinstance(cond, dict) else {} if cond is None else {'cond': cond}
    for name, value in sorted(conds.items()):
      _check(name, value)
      if name == 'span':
        h = h + embed(value, name)
      else:
        h = h + dense(use_bias=False, name=f'cond_{name}')(value.astype(jnp.float32))
    return h


def _check(name, value):
  if name == 'span':
    if value.ndim != 1:
      raise InputError(f"cond['span'] has the shape {value.shape}: expected one time per example, [B]")
  elif value.ndim != 2 or not jnp.issubdtype(value.dtype, jnp.floating):
    raise InputError(f'cond[{name!r}] is {value.dtype} {value.shape}: expected one float vector per example, [B, K]; '
                     'this network takes no other conditions')
