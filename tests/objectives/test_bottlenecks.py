"""Bottlenecks against integrals, brute force, k-means, and probabilistic PCA, whose ELBO is exact."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import likelihood
from diffusion.errors import InputError
from diffusion.objectives import bottlenecks as b

rng = np.random.default_rng(0)
nearest, moved, restarted = map(jax.jit, (b.nearest, b.moved, b.restarted))
logistic = jax.jit(likelihood.logistic_log_likelihood)


# ---- the diagonal Gaussian
def test_the_kl_is_the_integral_and_0_at_the_prior():
  mean, log_variance = rng.normal(size=7), rng.normal(size=7)
  x = np.linspace(-30, 30, 200_001)
  with jax.enable_x64(True):
    found = np.asarray(jax.jit(b.kl_to_prior)(mean, log_variance))
  log_normal = lambda m, lv: -.5 * ((x - m) ** 2 / np.exp(lv) + lv + np.log(2 * np.pi))
  for m, lv, value in zip(mean, log_variance, found):
    log_q = log_normal(m, lv)
    assert value == pytest.approx(np.trapezoid(np.exp(log_q) * (log_q - log_normal(0., 0.)), x), abs=1e-10)
  assert float(b.kl_to_prior(0., 0.)) == 0


def ppca(D=6, d=2, sigma2=.3):
  """A PPCA model by Tipping & Bishop's solution: mean, W, the covariance of x, and eigenvectors for checks."""
  axes, _ = np.linalg.qr(rng.normal(size=(D, D)))
  spread = np.array([4., 2.] + [sigma2] * (D - d))
  W = axes[:, :d] * np.sqrt(spread[:d] - sigma2)
  return rng.normal(size=D), W, axes @ np.diag(spread) @ axes.T, sigma2


def elbo(x, mean, log_variance, mu, W, sigma2):
  """The ELBO of a linear decoder with our terms; the expectation over z by its exact quadrature, 2 d points."""
  d = W.shape[1]
  points = np.concatenate([np.eye(d), -np.eye(d)]) * np.sqrt(d)  # mean 0, covariance 1: exact for quadratics
  log_p = 0
  for eps in points:
    made = mu + b.sample(mean, log_variance, jnp.asarray(eps)) @ W.T
    log_p += jnp.sum(likelihood.gaussian_log_density(x, made, .5 * np.log(sigma2)), -1) / len(points)
  return log_p - jnp.sum(b.kl_to_prior(mean, log_variance), -1)


def test_a_linear_vae_with_the_exact_posterior_has_the_likelihood_of_probabilistic_pca():
  """Tipping & Bishop 1999; any other encoder is below by exactly the KL of its posterior to the true one."""
  mu, W, covariance, sigma2 = ppca()
  x = rng.normal(size=(20, 6)) * 2
  M = W.T @ W + sigma2 * np.eye(2)  # diagonal, as the columns of W are orthogonal
  true = (x - mu) @ W @ np.linalg.inv(M)
  true_variance = sigma2 / np.diag(M)
  gap = x - mu
  exact = -.5 * (np.einsum('ni,ij,nj->n', gap, np.linalg.inv(covariance), gap) + np.linalg.slogdet(covariance)[1]
                 + 6 * np.log(2 * np.pi))
  with jax.enable_x64(True):
    ours = jax.jit(lambda mean, log_variance: elbo(x, mean, log_variance, mu, W, sigma2))
    found = ours(true, np.log(true_variance))
    np.testing.assert_allclose(found, exact, atol=1e-10)
    other, log_variance = true + .3, np.log(true_variance) - .7
    worse = ours(other, log_variance)
  ratio = np.exp(-.7)
  lost = np.sum(.5 * (ratio - 1 + .7 + .09 / true_variance))
  np.testing.assert_allclose(exact - np.asarray(worse), lost, atol=1e-10)


def test_the_loss_of_a_gaussian_bottleneck_is_its_kl_over_the_values_of_an_image():
  moments = rng.normal(size=(3, 2, 2, 4)).astype(np.float32)
  passed = jax.jit(b.gaussian(beta=2.).through)(moments, np.zeros((3, 2, 2, 2), np.float32), (), 24)
  mean, log_variance = moments[..., :2].astype(float), moments[..., 2:].astype(float)
  exact = .5 * np.sum(mean ** 2 + np.exp(log_variance) - 1 - log_variance, (1, 2, 3)) / 24
  np.testing.assert_allclose(passed.cost, 2 * exact, rtol=1e-5)
  np.testing.assert_allclose(passed.metrics['rate'], exact, rtol=1e-5)
  np.testing.assert_array_equal(passed.z, moments[..., :2])


@pytest.mark.parametrize('log_scale', (-6., -2., 1.))
def test_the_discretised_logistic_sums_to_1_and_is_the_mass_of_its_interval(log_scale):
  values = np.linspace(-1, 1, 256)
  with jax.enable_x64(True):
    for mean in (-1.2, .013, .7):
      found = np.exp(np.asarray(logistic(values, mean, log_scale)))
      assert found.sum() == pytest.approx(1, abs=1e-10)
      edges = (values[:-1] + values[1:]) / 2
      below = .5 * (1 + np.tanh((edges - mean) / np.exp(log_scale) / 2))  # the logistic function, another way
      np.testing.assert_allclose(found, np.diff(below, prepend=0, append=1), atol=1e-10)
  far = logistic(np.float32(1 - 2 / 255), -1., -6.)
  assert np.isfinite(far) and far == pytest.approx(-(2 - 3 / 255) * np.exp(6), rel=1e-3)  # the exponential tail


# ---- the codebook
def book_of(codes):
  codes = np.asarray(codes, np.float32)
  return b.Codebook(codes, np.zeros(len(codes), np.float32), np.zeros(codes.shape, np.float32))


def test_nearest_is_what_brute_force_finds_and_codes_are_their_own():
  z, codes = rng.normal(size=(4, 3, 3, 5)).astype(np.float32), rng.normal(size=(17, 5)).astype(np.float32)
  brute = ((z[..., None, :].astype(float) - codes.astype(float)) ** 2).sum(-1).argmin(-1)
  np.testing.assert_array_equal(nearest(z, codes), brute)
  np.testing.assert_array_equal(nearest(codes, codes), np.arange(17))
  decoded = jax.jit(b.vq(17).decoded)
  once = decoded(z, book_of(codes))
  np.testing.assert_array_equal(decoded(once, book_of(codes)), once)
  np.testing.assert_array_equal(once, codes[brute])


def test_rounding_has_the_code_as_value_and_the_gradient_of_what_follows_bit_for_bit():
  z, codes = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 2, 2, 3), (9, 3)))
  weight = rng.normal(size=z.shape).astype(np.float32)
  after = lambda q: jnp.sum(jnp.sin(q) * weight)
  quantised = codes[nearest(z, codes)]
  np.testing.assert_array_equal(jax.jit(b.straight_through)(z, quantised), quantised)
  loss = lambda z, codes: after(b.straight_through(z, codes[b.nearest(z, codes)]))
  through, gradient = jax.jit(jax.grad(loss, (0, 1)))(z, codes)
  np.testing.assert_array_equal(through, jax.jit(jax.grad(after))(quantised))
  np.testing.assert_array_equal(gradient, np.zeros_like(codes))


def test_the_commitment_pulls_latents_to_their_codes_with_its_closed_gradient():
  z, codes = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 2, 2, 3), (9, 3)))
  vq = b.vq(9, commitment=.4)
  cost = lambda z, book: jnp.sum(vq.through(z, np.zeros((2, 2, 2)), book, 48).cost)
  gradient, of_codes = jax.jit(jax.grad(cost, (0, 1)))(z, book_of(codes))
  np.testing.assert_allclose(gradient, 2 * .4 * (z - codes[nearest(z, codes)]) / 12, rtol=1e-5, atol=1e-7)
  np.testing.assert_array_equal(of_codes.codes, np.zeros_like(codes))


def test_averages_with_decay_0_are_a_step_of_k_means():
  z, codes = rng.normal(size=(60, 3)).astype(np.float32), rng.normal(size=(12, 3)).astype(np.float32)
  codes[5] = 100.  # has no latents
  index = np.asarray(nearest(z, codes))
  found = moved(book_of(codes), z, index, 0.)
  means = np.stack([z[index == k].mean(0) if (index == k).any() else codes[k] for k in range(12)])
  np.testing.assert_allclose(found.codes, means, rtol=2e-6, atol=1e-6)
  np.testing.assert_array_equal(found.count, np.bincount(index, minlength=12))


def test_averages_weigh_batches_by_powers_of_the_decay():
  batches, book = rng.normal(size=(5, 30, 2)).astype(np.float32), book_of(rng.normal(size=(3, 2)))
  indices = rng.integers(0, 3, (5, 30))
  for z, index in zip(batches, indices):
    book = jax.device_get(moved(book, z, index, .6))
  weights = .6 ** np.arange(4, -1, -1)
  for k in range(3):
    mass = weights[:, None] * (indices == k)
    np.testing.assert_allclose(book.codes[k], np.einsum('bn,bnd->d', mass, batches) / mass.sum(), rtol=1e-4, atol=1e-5)


def test_dead_codes_move_to_latents_that_have_none_near_and_living_ones_stay():
  codes = np.array([[0., 0.], [50., 50.], [60., 60.], [1., 1.]], np.float32)
  z = np.concatenate([np.zeros((90, 2)), np.ones((8, 2)), [[5., -5.], [-7., 7.]]]).astype(np.float32)  # a background
  index = np.asarray(nearest(z, codes))
  book = jax.device_get(moved(book_of(codes), z, index, 0.))
  found = jax.device_get(restarted(book, z, index, np.zeros(100, np.float32), .1))
  np.testing.assert_array_equal(np.sort(found.codes[1:3], 0), [[-7., -5.], [5., 7.]])
  np.testing.assert_array_equal(found.codes[::3], book.codes[::3])
  np.testing.assert_array_equal(found.count[1:3], [25., 25.])
  np.testing.assert_allclose(found.total[1:3] / found.count[1:3, None], found.codes[1:3])


def test_restarts_draw_in_proportion_to_the_squared_distance():
  z = jnp.array([[1.], [2.], [3.]])
  book, index = book_of([[0.], [99.]]), np.zeros(3, int)
  gumbel = jax.random.gumbel(jax.random.key(0), (20_000, 3))
  book = book._replace(count=np.float32([3., 0.]))
  drawn = np.asarray(jax.jit(jax.vmap(lambda g: b.restarted(book, z, index, g, .1).codes[1, 0]))(gumbel))
  np.testing.assert_allclose([np.mean(drawn == k) for k in (1, 2, 3)], np.array([1, 4, 9]) / 14, atol=.01)


def test_usage_counts_codes_and_perplexity_is_that_of_even_use():
  usage = jax.jit(b.usage, static_argnums=1)
  used, perplexity = usage(np.array([[0, 1], [2, 3]]), 8)
  assert float(used) == .5 and float(perplexity) == pytest.approx(4)
  assert float(usage(np.zeros((4, 4), int), 8)[1]) == pytest.approx(1)


def test_a_codebook_that_starts_from_noise_finds_every_cluster():
  centres = rng.normal(size=(16, 2)).astype(np.float32) * 10
  vq, book = b.vq(32, decay=.9), b.start_codebook(jax.random.key(0), 32, 2)
  step = jax.jit(lambda z, key, book: vq.remember(book, vq.through(z, vq.noise(key, z.shape), book, 8).metrics))
  for i in range(200):
    z = centres[rng.integers(0, 16, (8, 4, 4))] + .01 * rng.normal(size=(8, 4, 4, 2)).astype(np.float32)
    book = step(z, jax.random.key(i), book)
  gaps = np.sqrt(((centres[:, None] - np.asarray(book.codes)) ** 2).sum(-1)).min(1)
  assert np.all(gaps < .1), gaps


# ---- finite scalars
@pytest.mark.parametrize('levels', ((8, 5, 5, 5), (2, 3), (7, 4, 6)))
def test_every_code_of_finite_scalars_goes_there_and_back_and_no_other_is_made(levels):
  number = int(np.prod(levels))
  values = np.asarray(jax.jit(lambda index: b.scalars_of(index, levels))(np.arange(number)))
  np.testing.assert_array_equal(jax.jit(lambda values: b.scalar_index(values, levels))(values), np.arange(number))
  assert len(np.unique(values, axis=0)) == number
  wild = np.linspace(-40, 40, 4001, dtype=np.float32)[:, None] * np.ones(len(levels), np.float32)
  bounded = jax.jit(lambda z: b.bounded(z, levels))
  made = np.round(np.asarray(bounded(wild)))
  for d, L in enumerate(levels):
    np.testing.assert_array_equal(np.unique(made[:, d]), np.arange(L) - L // 2)
  np.testing.assert_allclose(bounded(np.zeros(len(levels), np.float32)), 0, atol=1e-6)
  fsq = b.fsq(levels)
  once = jax.jit(lambda z: fsq.decoded(fsq.latent(None, z), ()))(wild[:, None, None])
  np.testing.assert_allclose(jax.jit(fsq.decoded)(once, ()), once)


@pytest.mark.parametrize('make, message', [
  (lambda: b.kl(-1), 'kl.weight=-1'), (lambda: b.vq(1), 'codes=1'), (lambda: b.vq(8, decay=1.), 'decay=1.0'),
  (lambda: b.fsq((8, 1)), r'levels=\(8, 1\)'), (lambda: b.fsq(8), 'levels=8'), (lambda: b.gaussian(0), 'beta=0')])
def test_wrong_options_are_refused(make, message):
  with pytest.raises(InputError, match=message):
    make()
