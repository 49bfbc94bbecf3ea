"""Which noise a batch is given: functions (key, x0) -> (seen, target), the eps in the network's input and the one in its target."""
import jax
import jax.numpy as jnp
import optax

from diffusion.times import positive


def plain():
  """Independent standard Gaussian noise, seen and asked for (DDPM, arXiv:2006.11239)."""
  def noise(key, x0):
    eps = jax.random.normal(key, x0.shape)
    return eps, eps
  return noise


def offset(strength=.1):
  """Adds one draw a channel to all its pixels, so that the model learns to move the mean brightness ("Diffusion with offset noise",
  Guttenberg 2023). The covariance over the pixels of a channel is I + strength^2 * 11^T; samplers start from plain noise all the same.
  x0 [B, ..., C] with at least one axis of pixels."""
  positive('offset', strength=strength)
  def noise(key, x0):
    shared = (x0.shape[0],) + (1,) * (x0.ndim - 2) + x0.shape[-1:]
    own_key, shared_key = jax.random.split(key)
    eps = jax.random.normal(own_key, x0.shape) + strength * jax.random.normal(shared_key, shared)
    return eps, eps
  return noise


def perturbed(gamma=.1):
  """The network sees eps + gamma * another draw, and is asked for eps: it meets in training the errors that its own samples will hold
  (input perturbation, arXiv:2301.11706, algorithm 1)."""
  positive('perturbed', gamma=gamma)
  def noise(key, x0):
    eps_key, more_key = jax.random.split(key)
    eps = jax.random.normal(eps_key, x0.shape)
    return eps + gamma * jax.random.normal(more_key, x0.shape), eps
  return noise


def paired():
  """Plain noise, dealt out within the batch so that the sum of |x0 - eps|^2 is least: straighter flows (arXiv:2302.00482, section 3.2;
  arXiv:2304.14772).

  Only the noises change places, so each x0 keeps its condition; with conditions that say much about x0 the pairing is biased, since it
  joins noise to the condition as well. Exact assignment costs O(B^3), partly in sequence: hundredths of a second on a CPU at B = 256.
  Under jit the batch is the whole batch, whatever the devices: all of x0 and eps is gathered on every one of them. Under pmap or
  shard_map each device pairs its own share.
  """
  def noise(key, x0):
    eps = jax.random.normal(key, x0.shape)
    flat = lambda a: jnp.reshape(a, (len(a), -1))
    i, j = optax.assignment.hungarian_algorithm(-flat(x0) @ flat(eps).T)  # |x0|^2 and |eps|^2 are the same in every pairing
    eps = jnp.zeros_like(eps).at[i].set(eps[j])
    return eps, eps
  return noise
