"""Guidance: functions from denoisers to denoisers. The order of a stack is the order of the calls."""
import jax.numpy as jnp

from diffusion.noise import like
from diffusion.predict import Pred


def cfg(cond, null, scale, lo=-jnp.inf, hi=jnp.inf):
  """Classifier-free guidance u + scale * (c - u) (arXiv:2207.12598), inside a log-SNR interval (arXiv:2404.07724).

  Args:
    cond, null: the denoiser with the condition and with the null condition.
    scale: 1 is conditional, 0 unconditional, above 1 exaggerates the condition. Scalar or [B].
    lo, hi: guidance acts where lo <= logsnr <= hi; elsewhere the result is conditional.
  """
  def guided(x, noise):
    c, u = cond(x, noise), null(x, noise)
    k = jnp.where((noise.logsnr >= lo) & (noise.logsnr <= hi), scale, 1.)
    k = like(noise._replace(logsnr=k), x).logsnr
    return Pred(u.x0 + k * (c.x0 - u.x0), u.eps + k * (c.eps - u.eps), c.variance)
  return guided
