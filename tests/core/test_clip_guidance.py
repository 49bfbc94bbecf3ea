"""Guidance by a CLIP against Bayes."""
import jax.numpy as jnp
import numpy as np

from diffusion.core import schedules
from diffusion.core.gaussian import take
from diffusion.core.guidance import classifier, cosine
from tests.exact import correlated_denoiser


def test_guidance_by_the_cosine_of_a_linear_clip_is_bayes_rule():
  """p(x0) exp(s w.x0) of a Gaussian p is the same Gaussian, moved by s Sigma w: the posterior covariance of x0 does not
  depend on x_t, so that log E[exp(s w.x0) | x_t] is s w.E[x0 | x_t] and a constant. A plain CLIP is exact through the
  estimate of x0, and a noised one where it says w.E[x0 | x_t]."""
  rng = np.random.default_rng(0)
  root = rng.normal(size=(4, 4))
  mean, covariance, w, scale = rng.normal(size=4), root @ root.T / 4 + .1 * np.eye(4), rng.normal(size=4), 1.7
  plain = correlated_denoiser(mean, covariance)
  texts, x = jnp.asarray(np.tile(w, (5, 1)), jnp.float32), jnp.asarray(rng.normal(size=(5, 4)), jnp.float32)
  exact = correlated_denoiser(mean + scale * covariance @ w, covariance)
  table = schedules.cosine(T=100)
  of_clean = cosine(lambda x, noise: x, texts, lambda x, noise: plain(x, noise).x0)
  noised = cosine(lambda x, noise: plain(x, noise).x0, texts)
  for row in (3, 50, 95):
    noise = take(table, row)
    for log_prob in (of_clean, noised):
      found = classifier(plain, log_prob, scale)(x, noise)
      np.testing.assert_allclose(found.x0, exact(x, noise).x0, rtol=2e-4, atol=2e-4)
      np.testing.assert_allclose(found.eps, exact(x, noise).eps, rtol=2e-3, atol=2e-3)
    assert row == 3 or float(jnp.abs(found.x0 - plain(x, noise).x0).max()) > .1
