"""The choice of a solver for a grid: which, and that it is near the best on data whose solution is known."""
import functools
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import samplers
from diffusion.core import grids, schedules
from diffusion.core.gaussian import expand_to, from_x0, take
from experiments.mixture import exact_flow, mixture_denoiser
from tests.exact import gaussian_denoiser, gaussian_flow
from tests.samplers.test_solvers import EDM, MEANS, run, STD, walked

EXACT = mixture_denoiser(MEANS.astype(np.float32), STD)
SOLVERS = {name: functools.cache(getattr(samplers, name)) for name in ('flow_pc', 'flow_lms', 'plms', 'unipc')}
DDIM = samplers.ddim()
COSINE, FLOW = schedules.cosine(), schedules.flow()


@pytest.mark.parametrize('levels, same', [
  (grids.trailing(1)(COSINE), samplers.flow_pc(1)), (grids.trailing(3)(COSINE), samplers.flow_pc(1)),
  (grids.trailing(10)(COSINE), samplers.flow_pc(3)), (grids.trailing(50)(COSINE), samplers.flow_pc(3)),
  (grids.trailing(20)(schedules.offset_cosine()), samplers.flow_pc(3)), (grids.angle(20)(EDM), samplers.flow_pc(3)),
  (grids.trailing(10)(FLOW), samplers.flow_pc(3)), (grids.trailing(30)(FLOW), samplers.flow_lms(4)),
  (grids.exponential(7)(EDM), samplers.plms(4)), (grids.karras(10)(EDM), samplers.plms(3)),
  (grids.karras(20)(COSINE), samplers.plms(3)), (grids.exponential(60)(EDM), samplers.unipc(3))])
def test_best_is_the_solver_measured_for_such_a_grid(levels, same):
  x, denoise = np.ones((2, 8), np.float32), mixture_denoiser(MEANS.astype(np.float32), STD)
  np.testing.assert_array_equal(run(samplers.best(levels), levels, denoise, x), run(same, levels, denoise, x))


def test_best_is_near_the_best_of_our_solvers_on_a_mixture():
  orders = dict(unipc=(2, 3), deis=(3,), lms=(4,), plms=(3, 4), flow_lms=(3, 4), flow_pc=(2, 3))
  solvers = {(name, p): getattr(samplers, name)(p) for name, each in orders.items() for p in each}
  solvers |= dict(dpmpp_2m=samplers.dpmpp_2m(), dpmpp_3m=samplers.dpmpp_3m())
  denoise, z = mixture_denoiser(MEANS.astype(np.float32), STD), np.random.default_rng(1).normal(size=(64, 8))
  walks = {name: walked(solver, denoise) for name, solver in solvers.items()}
  at_most = {20: 1.65, 40: 1.3}  # even in log-SNR: more would cost networks more (see the next test)
  for schedule, grid, u in ((EDM, grids.karras, 80.), (EDM, grids.angle, 80.), (FLOW, grids.trailing, 1e6)):
    truth = exact_flow(MEANS, STD, u * z, u, 1e-6)
    for S in (5, 10, 20, 40):
      levels = grid(S)(schedule)
      def error(walk):
        return np.sqrt(np.mean((walk(levels, levels.sigma[0] * z, np.arange(64)) - truth) ** 2))
      ratio = error(walked(samplers.best(levels), denoise)) / min(map(error, walks.values()))
      assert ratio < (at_most.get(S, 1.1) if grid is grids.karras else 1.2), (grid, S, ratio)


def imperfect(x, noise):
  level = expand_to(noise, x)
  return from_x0(level, x, EXACT(x, noise).x0 + .1 * jnp.sin(1e3 * x / jnp.hypot(level.alpha, level.sigma)))


@functools.cache
def walks(solver):
  """Of an imperfect and of the exact denoiser; compiled once for all grids."""
  return walked(solver, imperfect), walked(solver, EXACT)


@pytest.fixture
def same_solvers(monkeypatch):
  """Has `best` return the same object for the same choice, so that `walks` knows it."""
  for name, solver in SOLVERS.items():
    monkeypatch.setattr(sys.modules[samplers.best.__module__], name, solver)


@pytest.mark.parametrize('grid', [grids.trailing, grids.angle, grids.karras, grids.exponential, grids.cosine])
@pytest.mark.parametrize('schedule', ['cosine', 'edm', 'flow'])
def test_best_does_not_enlarge_the_errors_of_a_network(schedule, grid, same_solvers):
  """The error of x0 has no pattern and a size of .07; without a limit flow_pc makes 13 of it, and flow_lms 70."""
  table = getattr(schedules, schedule)()
  x = np.random.default_rng(1).normal(size=(64, 8))
  for S in (5, 10, 20, 40):
    levels = grid(S)(table)
    def far(sampler):
      wrong, right = (walk(levels, levels.sigma[0] * x, np.arange(64)) for walk in walks(sampler))
      return np.sqrt(np.mean(np.square(wrong - right)))
    assert far(samplers.best(levels)) < .6, S
    assert far(samplers.best(levels)) < 3 * far(DDIM), S


def test_our_solver_and_grid_beat_the_well_known_ones_on_a_mixture_at_ten_evaluations():
  x = 80 * np.random.default_rng(1).normal(size=(32, 8))
  truth, denoise = exact_flow(MEANS, STD, x, 80, 1e-6), mixture_denoiser(MEANS.astype(np.float32), STD)
  def error(sampler, grid):
    return np.sqrt(np.mean((run(sampler, grid(10)(EDM), denoise, x.astype(np.float32)) - truth) ** 2))
  ours = error(samplers.flow_pc(2), grids.angle)
  for sampler in (samplers.ddim(), samplers.dpmpp_2m(), samplers.unipc(2), samplers.deis(3)):
    assert ours < .5 * min(error(sampler, grid) for grid in (grids.angle, grids.trailing, grids.karras))


def test_best_stays_near_the_solution_of_an_imperfect_model_where_the_last_step_is_long():
  exact, levels = gaussian_denoiser(.1, .5), grids.trailing(50)(schedules.offset_cosine())
  def imperfect(x, noise):  # as a trained network errs: by a little, without pattern
    return from_x0(expand_to(noise, x), x, exact(x, noise).x0 + .02 * jnp.sin(1e3 * x))
  x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
  truth = gaussian_flow(.1, .5, x, take(levels, 0))
  far = lambda sampler: np.sqrt(np.mean((run(sampler, levels, imperfect, x) - truth) ** 2))
  assert far(samplers.best(levels)) < far(samplers.ddim())  # all of them end in that long step
  assert far(samplers.flow_lms(3, growth='inf')) > 3 * far(samplers.ddim())  # extrapolated over 16 of its steps
