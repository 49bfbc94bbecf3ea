"""Solvers that draw noise against recursions written here from their papers, in float64 at alpha = 1, u = sigma.

The noise is what the sampler draws (samplers.gaussian, by the number of the evaluation); integrals are SciPy's.
"""
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

from diffusion import samplers
from diffusion.core import schedules
from diffusion.core.gaussian import CLEAN, from_x0, Noise, ve
from experiments.mixture import mixture_denoiser, mixture_eps

MEANS, STD = np.random.default_rng(0).normal(size=(4, 8)), .3
pytestmark = pytest.mark.usefixtures('double')
EDM, KEYS = schedules.edm(None, .002, 80.), samplers.sample_keys(0, np.arange(3))
U = np.append(np.geomspace(40, .05, 7) * np.array([1, 1.1, .9, 1, 1.2, .9, 1]), 0)  # uneven on purpose
X = 40 * np.random.default_rng(5).normal(size=(3, 8))


def run(sampler, u=U, x=X):
  levels = ve(np.log(u[:-1]) / 4 * 1000, -2 * np.log(u[:-1]))
  levels = Noise(*(np.append(a, c) for a, c in zip(levels, CLEAN)))
  return np.asarray(samplers.sample(KEYS, mixture_denoiser(MEANS, STD), sampler, levels, jnp.asarray(x)))


def x0_at(x, u):
  return x - u * mixture_eps(MEANS, STD, x, u)


def draw(index):
  return np.asarray(samplers.gaussian(KEYS, index, jnp.zeros(X.shape)))


def lagrange_weights(nodes, low, high, density):
  """Integrals of density * each Lagrange polynomial of the nodes, by adaptive quadrature."""
  def polynomial(j, v):
    return np.prod([(v - n) / (nodes[j] - n) for i, n in enumerate(nodes) if i != j])
  return [quad(lambda v: density(v) * polynomial(j, v), low, high, epsabs=1e-13, epsrel=1e-13)[0]
          for j in range(len(nodes))]


def adams(tau, predictor, corrector):
  """SA-Solver in data prediction, exact coefficients: the decayed sample, the integrals and the noise of each step."""
  lam, x, values, i = -np.log(U[:-1]), X.copy(), [x0_at(X, U[0])], 0
  steps = len(U) - 2
  for i in range(steps):
    decay = np.exp(-tau ** 2 * (lam[i + 1] - lam[i]))
    def density(v):  # sigma_s * e^(v) * the decay from v to the end * (1 + tau^2)
      return U[i + 1] * np.exp(v) * np.exp(-tau ** 2 * (lam[i + 1] - v)) * (1 + tau ** 2)
    def step(indices, known):
      w = lagrange_weights([lam[j] for j in indices], lam[i], lam[i + 1], density)
      noise = U[i + 1] * np.sqrt(1 - decay ** 2) * draw(i + 1)
      return U[i + 1] / U[i] * decay * x + sum(a * known[j] for a, j in zip(w, indices)) + noise
    left = steps + 1 - i  # the order falls towards the end
    past = [i - j for j in range(min(predictor, i + 1, left))]
    predicted = step(past, values)
    values.append(x0_at(predicted, U[i + 1]))
    old = [i - j for j in range(min(corrector - 1, i + 1, left))]
    x = step([i + 1, *old], values) if corrector else predicted
  return values[-1]


@pytest.mark.parametrize('tau, predictor, corrector', [(1., 2, 2), (.6, 3, 4), (1.3, 1, 2), (.8, 3, 0), (0., 3, 3)])
def test_sa_solver_is_its_recursion(tau, predictor, corrector):
  ours = run(samplers.sa_solver(predictor, corrector, tau, kind='exact'))
  np.testing.assert_allclose(ours, adams(tau, predictor, corrector), rtol=1e-8)


def test_noise_only_where_it_is_asked_for():
  np.testing.assert_allclose(run(samplers.sa_solver(low=100.)), run(samplers.sa_solver(tau=0)), rtol=1e-12)
  assert np.abs(run(samplers.sa_solver(low=.5, high=5.)) - run(samplers.sa_solver(tau=0))).max() > .01


def test_without_noise_these_are_the_solvers_of_the_ode():
  # the pairs of dpmpp_2s on this grid are the intervals of U
  doubled = np.append(np.insert(U[:-1], np.arange(1, 7), np.sqrt(U[:-2] * U[1:-1])), 0)
  pairs = [(samplers.sa_solver(2, 3, 0.), samplers.unipc(2, 'bh1'), U),
           (samplers.sa_solver(3, 4, 0., kind='bh2'), samplers.unipc(3), U),
           (samplers.sa_solver(2, 0, 1.2, kind='exact'), samplers.dpmpp_sde_2m(1.44, 'heun'), U),
           (samplers.dpmpp_sde_3m(0.), samplers.dpmpp_3m(), U),
           (samplers.dpm_2_ancestral(EDM, 0.), samplers.dpm_2(EDM), U),
           (samplers.dpmpp_sde(EDM, 0.), samplers.dpmpp_2s_ancestral(EDM, 0.), U),
           (samplers.dpmpp_2s_ancestral(EDM, 0.), samplers.dpmpp_2s(), doubled)]
  for ours, ode, u in pairs:
    np.testing.assert_allclose(run(ours), run(ode, u), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize('eta', [1., .4])
def test_sde_3m_is_its_recursion(eta):
  lam, x, values = -np.log(U[:-1]), X.copy(), []
  for i in range(len(U) - 2):
    h, rate = lam[i + 1] - lam[i], 1 + eta
    values.append(x0_at(x, U[i]))
    decayed, m = np.exp(-rate * h), values[::-1]
    move = (1 - decayed) * m[0]
    if i:
      line = (1 - decayed) / 2 * h * (m[0] - m[1]) / (lam[i] - lam[i - 1])
      move += line
    if i > 1:
      w = lagrange_weights(lam[[i, i - 1, i - 2]], lam[i], lam[i + 1],
                           lambda v: rate * np.exp(rate * (v - lam[i + 1])))
      exact = sum(a * (b - m[0]) for a, b in zip(w, m))
      move += np.exp(-.7 * h) * (exact - line)
    x = decayed * x + move + U[i + 1] * np.sqrt(1 - np.exp(-2 * eta * h)) * draw(i + 1)
  np.testing.assert_allclose(run(samplers.dpmpp_sde_3m(eta)), x0_at(x, U[-2]), rtol=1e-8)


def ancestral(a, b, eta):
  """(where the ODE goes, noise): the variance of q(x_b | x_a, x0) is (1 - (b / a)^2) b^2, of which eta^2 is fresh."""
  up = eta * b * np.sqrt(1 - (b / a) ** 2)
  return np.sqrt(b ** 2 - up ** 2), up


@pytest.mark.parametrize('eta, noise', [(1., 1.), (.5, 1.1)])
@pytest.mark.parametrize('name', ['dpm_2_ancestral', 'dpmpp_2s_ancestral', 'dpmpp_sde'])
def test_ancestral_methods_are_their_recursions(name, eta, noise):
  x = X.copy()
  for i, (a, b) in enumerate(zip(U[:-2], U[1:-1])):
    down, up = ancestral(a, b, eta)
    middle = np.sqrt(a * (b if name == 'dpmpp_sde' else down))
    x0, z1, z2 = x0_at(x, a), draw(2 * i + 1), draw(2 * i + 2)
    if name == 'dpmpp_sde':
      near, near_up = ancestral(a, middle, eta)
      trial = near / a * x + (1 - near / a) * x0 + noise * near_up * z1
      path = np.sqrt(a - middle) * z1 + np.sqrt(middle - b) * z2  # a Brownian path in u
      z2 = path / np.sqrt(a - b)
    else:
      trial = middle / a * x + (1 - middle / a) * x0
    if name == 'dpm_2_ancestral':
      x = x + (down - a) * mixture_eps(MEANS, STD, trial, middle)
    else:
      x = down / a * x + (1 - down / a) * x0_at(trial, middle)
    x = x + noise * up * z2
  np.testing.assert_allclose(run(getattr(samplers, name)(EDM, eta, noise)), x0_at(x, U[-2]), rtol=1e-6)


def test_dpm_2_with_churn_is_its_recursion():
  churn, low, high, noise = 3., .2, 20., 1.01
  x, S = X.copy(), len(U) - 1
  for i, (a, b) in enumerate(zip(U[:-2], U[1:-1])):
    raised = a * (1 + (min(churn / S, np.sqrt(2) - 1) if low <= a <= high else 0))
    x = x + np.sqrt(raised ** 2 - a ** 2) * noise * draw(2 * i + 1)
    middle = np.sqrt(raised * b)
    trial = x + (middle - raised) * mixture_eps(MEANS, STD, x, raised)
    x = x + (b - raised) * mixture_eps(MEANS, STD, trial, middle)
  np.testing.assert_allclose(run(samplers.dpm_2(EDM, churn, low, high, noise)), x0_at(x, U[-2]), rtol=1e-6)


@pytest.mark.parametrize('make', [
  samplers.dpmpp_sde_3m, samplers.sa_solver, lambda: samplers.dpmpp_sde(EDM), lambda: samplers.dpm_2_ancestral(EDM),
  lambda: samplers.dpmpp_2s_ancestral(EDM)])
def test_the_variance_of_gaussian_data_converges(make):
  """Exactly, without sampling: the recursion is linear in x and in each noise, and each sample here has one of them."""
  std, errors = .5, []
  def denoise(x, noise):
    return from_x0(noise, x, std ** 2 / (std ** 2 + noise.sigma ** 2) * x)
  for S in (10, 20, 40):
    u = np.append(np.geomspace(40, .01, S), 0)
    levels = Noise(*(np.append(a, c) for a, c in zip(ve(np.zeros(S), -2 * np.log(u[:-1])), CLEAN)))
    rows = len(make().plan(levels).h)
    number = jnp.arange(rows + 1)  # 0: the starting noise; then that of each evaluation
    with pytest.MonkeyPatch.context() as patch:
      for module in (samplers.multistep, samplers.corrected, samplers.two_stage):
        patch.setattr(module, 'gaussian', lambda keys, index, x: jnp.where(index == number, 1., 0.))
      responses = samplers.sample(KEYS[:1], denoise, make(), levels, jnp.where(number == 0, 40., 0.))
    variance = float(jnp.sum(responses ** 2))
    errors.append(abs(variance - std ** 2))
  assert errors[2] < errors[1] < errors[0] and errors[2] < .05 * std ** 2

