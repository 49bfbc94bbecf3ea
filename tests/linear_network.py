"""The smallest network that learns, for tests of what happens around the network: it traces and compiles faster than a
U-Net."""
import flax.linen as nn
import jax.numpy as jnp


class Linear(nn.Module):
  """(x [B, H, W, C], time [B], cond [B, K] or None, train) -> [B, H, W, out_channels or C]: linear in x, with one hidden
  layer for time and condition."""
  out_channels: int | None = None

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    known = [jnp.cos(time[:, None] / 300.), jnp.ones((len(x), 1))] + ([] if cond is None else [cond])
    hidden = jnp.tanh(nn.Dense(16, name='known')(jnp.concatenate(known, -1)))
    size = x[0].size
    features = jnp.concatenate([x.reshape(len(x), size), hidden], -1)
    out = nn.Dense(size // x.shape[-1] * (self.out_channels or x.shape[-1]), name='out')(features)
    return out.reshape(*x.shape[:-1], -1)
