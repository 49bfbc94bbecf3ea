"""The two towers: who sees what. Other libraries' towers are in tests/interop/test_clip.py."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import nets
from diffusion.errors import InputError
from diffusion.nets.clip import Clip

RNG = np.random.default_rng(0)
SIZES = dict(size=10, patch=7, width=24, blocks=2, heads=3, hidden=40, text_width=16, text_blocks=2, text_heads=2,
             vocabulary=11, length=6)
X = RNG.uniform(-1, 1, (2, 28, 28, 3)).astype(np.float32)
TOKENS = RNG.integers(0, 11, (3, 6))
WEIGHTS = (np.arange(6) < np.array([6, 3, 1])[:, None]).astype(np.float32)


def made(**options):
  """(Net, parameters: all random)."""
  net = nets.make(Clip(**SIZES | options))
  init = lambda key: net.init(key, X.shape, dict(tokens=TOKENS[:1], weights=WEIGHTS[:1]))
  params = jax.eval_shape(init, jax.random.key(0))
  return net, jax.tree.map(lambda a: RNG.normal(size=np.shape(a)).astype(np.float32) * .3, params)


def texts(net, params, tokens=TOKENS, weights=WEIGHTS):
  return np.asarray(jax.jit(net.prepare)(params, dict(tokens=tokens, weights=weights)))


def test_a_text_is_read_at_its_last_token_and_what_follows_has_no_effect():
  net, params = made()
  whole = texts(net, params)
  np.testing.assert_allclose(texts(net, params, np.where(WEIGHTS > 0, TOKENS, 0)), whole, atol=1e-6)
  np.testing.assert_allclose(texts(net, params, TOKENS[1:2, :3], WEIGHTS[1:2, :3])[0], whole[1], atol=1e-6)
  changed = TOKENS.copy()
  changed[:, 0] = (changed[:, 0] + 1) % 11
  assert np.abs(texts(net, params, changed) - whole).max(1).min() > 1e-3
  net, params = made(form='siglip')  # which sees all places
  assert np.abs(texts(net, params, np.where(WEIGHTS > 0, TOKENS, 0)) - texts(net, params))[1:].max() > 1e-3


@pytest.mark.parametrize('form', ['clip', 'siglip'])
@pytest.mark.parametrize('timed', [False, True])
def test_vectors_answer_to_every_parameter_of_their_tower_and_to_time_if_told(form, timed):
  net, params = made(form=form, timed=timed)
  time = np.array([3., 700.], np.float32)
  def seen(params, time):
    return jnp.vdot(jnp.cos(jnp.arange(2. * net_size)), net.apply(params, X, time).ravel())
  net_size = 24 if form == 'siglip' else 10
  slopes, of_time = jax.jit(jax.grad(seen, (0, 1)))(params, time)
  heard = lambda params: jnp.sum(jnp.sin(9 * net.prepare(params, dict(tokens=TOKENS, weights=WEIGHTS))))
  words = jax.jit(jax.grad(heard))(params)
  for path, slope in jax.tree_util.tree_leaves_with_path(dict(image=slopes['image'], text=words['text'])):
    assert np.any(slope != 0), jax.tree_util.keystr(path)
  assert all(not np.any(a) for a in jax.tree.leaves((slopes['text'], words['image'])))
  assert bool(np.all(of_time != 0)) == timed


@pytest.mark.parametrize('options, shape, message', [
  (dict(form='blip'), X.shape, "form='blip'"), (dict(patch=5), X.shape, 'patch=5'), (dict(heads=5), X.shape, 'heads=5'),
  (dict(vocabulary=0), X.shape, "config.task='pairs'"), (dict(width=0), X.shape, 'width=0'),
  (dict(activation='relu'), X.shape, "activation='relu'"), ({}, (1, 28), 'patch=7')])
def test_what_does_not_fit_is_named(options, shape, message):
  with pytest.raises(InputError, match=message):
    nets.make(Clip(**SIZES | options)).init(jax.random.key(0), shape, dict(tokens=TOKENS[:1], weights=WEIGHTS[:1]))
