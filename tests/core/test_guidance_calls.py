"""Calling the network for guidance: twice, or once with a doubled batch; and a stack that calls it once."""
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import gaussian
from diffusion.core.gaussian import denoiser, dynamic_threshold, flow, Noise, take, ve, vp, with_variance
from diffusion.core.guidance import apg, batched_pair, cfg, interval, rescale, separate_pair, shared_predictions
from diffusion.errors import InputError

rng = np.random.default_rng(0)


def draw(*shape):
  return jnp.asarray(rng.standard_normal(shape), jnp.float32)


def levels(scaling):
  return Noise(*(jnp.asarray(a, jnp.float32) for a in scaling(np.arange(5.), np.array([-4., -1., 0., 2., 4.]))))


X = draw(5, 4, 4, 3)
PARAMS = dict(w=draw(3, 6), style=draw(2, 6))


def small_net(params, x, time, cond, train, rngs):
  """Nonlinear, conditional, with a learned variance (2C outputs)."""
  shift = cond['word'] @ params['w'] + cond['style'] @ params['style'] + jnp.sin(time)[:, None]
  return jnp.tanh(jnp.concatenate([x, 2 * x], -1) + shift[:, None, None])


CONDS = dict(word=jnp.eye(3)[np.array([0, 1, 2, 0, 1])], style=draw(5, 2))
NONE = jax.tree.map(jnp.zeros_like, CONDS)


@pytest.mark.parametrize('target, scaling',
                         [(gaussian.predict_v(), vp), (gaussian.predict_edm(.5), ve), (gaussian.predict_flow(), flow)])
def test_a_batched_pair_equals_a_separate_pair(target, scaling):
  noise, target = levels(scaling), with_variance(target)
  conditional = partial(denoiser, small_net, PARAMS, predict=target)
  apart = separate_pair(conditional(CONDS), conditional(NONE))
  together = batched_pair(small_net, PARAMS, CONDS, NONE, target)
  for level in (noise, take(noise, 1)):
    for got, want in zip(together(X, level), apart(X, level)):
      jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), got, want)
    got = shared_predictions(together, lambda c, u: cfg(c, u, 3.))(X, level)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), got,
                 cfg(conditional(CONDS), conditional(NONE), 3.)(X, level))


def test_a_stack_calls_the_network_once_and_equals_the_stack_of_denoisers():
  calls = []
  def net(params, x, *rest):
    calls.append(len(x))
    return small_net(params, x, *rest)
  stack = lambda c, u: dynamic_threshold(interval(rescale(apg(c, u, 4., norm=5.), c), c, -2., 3.), .9)
  noise = levels(vp)
  target = with_variance(gaussian.predict_v())
  got = shared_predictions(batched_pair(net, PARAMS, CONDS, NONE, target), stack)(X, noise)
  assert calls == [10]
  want = stack(*(denoiser(small_net, PARAMS, c, target) for c in (CONDS, NONE)))(X, noise)
  jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), got, want)


SHARDED = '''
from diffusion.system import platform
platform.start(2)
import re
import jax, jax.numpy as jnp
from diffusion.core.gaussian import Noise, predict_v, with_variance
from diffusion.core.guidance import batched_pair, cfg, shared_predictions
from diffusion.system import sharding
from tests.core.test_guidance_calls import CONDS, NONE, PARAMS, X, small_net
def guided(x, cond, null):
  pair = batched_pair(small_net, PARAMS, cond, null, with_variance(predict_v()))
  return shared_predictions(pair, lambda c, u: cfg(c, u, 3.))(x, Noise(7., .8, .6, .57)).x0
assert len(jax.devices()) == 2
batch = jax.tree.map(lambda a: a[:4], (X, CONDS, NONE))
text = jax.jit(guided).lower(*sharding.put_batch(batch, sharding.make_mesh())).compile().as_text()
moves = re.findall('all-gather|collective-permute|all-to-all|all-reduce', text)
assert 'num_partitions=2' in text and not moves, moves
'''


def test_a_batched_pair_moves_nothing_between_devices():
  done = subprocess.run([sys.executable, '-c', SHARDED], env=dict(os.environ), capture_output=True, text=True,
                        timeout=200, cwd=Path(__file__).parents[2])
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('cond, null, message', [
  (None, None, 'two conditions'), (CONDS, CONDS['word'], 'same shapes'),
  (CONDS['word'], CONDS['style'], r'\(5, 3\) and \(5, 2\)'),
])
def test_conditions_of_other_shapes_are_refused(cond, null, message):
  with pytest.raises(InputError, match=message):
    batched_pair(small_net, PARAMS, cond, null, gaussian.predict_v())
