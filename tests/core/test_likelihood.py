"""Closed forms of likelihood against quadrature and scipy, in float64."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from diffusion.core import likelihood


@pytest.mark.parametrize('mean, std, other_mean, other_std', [
  (0., 1., 0., 1.), (.3, .5, -.4, 2.), (1., 3., 1.2, .4), (0., .01, .001, .0101)])
def test_the_divergence_of_two_gaussians(mean, std, other_mean, other_std):
  p, q = stats.norm(mean, std), stats.norm(other_mean, other_std)
  expected = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), mean - 12 * std, mean + 12 * std,
                            epsabs=1e-12, limit=200)[0]
  got = likelihood.gaussian_kl(jnp.float32(mean), 2 * np.log(std), other_mean, 2 * np.log(other_std))
  assert float(got) == pytest.approx(expected, rel=2e-4, abs=1e-7)


def test_the_log_density_is_scipys():
  x = np.linspace(-3, 3, 13).astype(np.float32)
  np.testing.assert_allclose(likelihood.gaussian_log_density(x, .2, np.log(.3).astype(np.float32)),
                             stats.norm(.2, .3).logpdf(x), rtol=1e-5)


@pytest.mark.parametrize('std', [1e-3, .02, .3, 2.])
@pytest.mark.parametrize('mean', [-.9, .1, 1.3])
def test_the_discretised_likelihood_is_the_mass_of_its_interval(mean, std):
  levels = 256
  x = np.linspace(-1, 1, levels)
  edges = np.concatenate([[-np.inf], (x[1:] + x[:-1]) / 2, [np.inf]])
  normal = stats.norm(mean, std)
  lower = edges[:-1] < mean  # the side on which scipy keeps its digits
  mass = np.where(lower, normal.cdf(edges[1:]) - normal.cdf(edges[:-1]), normal.sf(edges[:-1]) - normal.sf(edges[1:]))
  got = likelihood.discretised_log_likelihood(jnp.asarray(x, jnp.float32), mean, jnp.log(jnp.float32(std)))
  assert np.isfinite(got).all()
  assert float(jnp.sum(jnp.exp(got))) == pytest.approx(1, abs=2e-4)
  sure = mass > 1e-30
  np.testing.assert_allclose(got[sure], np.log(mass[sure]), rtol=1e-3, atol=2e-3)


def test_the_discretised_likelihood_has_finite_slopes_also_at_both_ends_and_far_away():
  x = jnp.array([-1., -1., 0., 1., 1.])
  mean = jnp.array([-3., .9, .5, 5., -.99])
  slopes = jax.grad(lambda mean, log_std: jnp.sum(likelihood.discretised_log_likelihood(x, mean, log_std)),
                    (0, 1))(mean, jnp.full(5, -4.))
  assert np.isfinite(np.asarray(slopes)).all()
  up, down = (likelihood.discretised_log_likelihood(x, mean + d, -1.) for d in (.01, -.01))
  exact = jax.grad(lambda mean: jnp.sum(likelihood.discretised_log_likelihood(x, mean, -1.)))(mean)
  np.testing.assert_allclose(exact, (up - down) / .02, rtol=.02, atol=2e-3)


def test_a_step_that_is_right_has_no_divergence_and_small_ones_keep_their_digits():
  zero = likelihood.step_kl(jnp.zeros(3), jnp.array([.01, 1., 8.]), jnp.array([1., 1e3, 0.]), jnp.zeros(3))
  np.testing.assert_array_equal(zero, 0)
  r = np.array([1e-2, 1e-1, 1.])
  np.testing.assert_allclose(likelihood.step_kl(jnp.ones(3), jnp.asarray(r, jnp.float32), 0., 0.),
                             .5 * (r + np.expm1(-r)), rtol=1e-4)
