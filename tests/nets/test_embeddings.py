"""Embeddings of time and conditions."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.nets import embeddings
from diffusion.nets.embeddings import Embedding


def test_sinusoidal_embedding_matches_the_closed_form():
  time = np.array([0., .5, 1., 37.25, 999.])
  got = embeddings.sinusoidal(jnp.asarray(time, jnp.float32), 8)
  frequency = np.array([1, .1, .01, .001])  # 10000^(-i/4)
  want = np.concatenate([np.sin(np.outer(time, frequency)), np.cos(np.outer(time, frequency))], 1)
  np.testing.assert_allclose(got, want, atol=1e-4)


def test_fourier_features_tell_times_apart_and_never_change():
  time = jnp.linspace(0, 1000, 50)
  first, again = embeddings.fourier(time, 64), jax.jit(embeddings.fourier, static_argnums=1)(time, 64)
  np.testing.assert_allclose(first, again, atol=2e-3)
  gram = np.asarray(first @ first.T) / 32  # 1 on the diagonal: sin^2 + cos^2
  np.testing.assert_allclose(np.diag(gram), 1, atol=1e-4)
  assert np.abs(gram - np.eye(50)).max() < .9


def test_the_embedding_of_a_mixture_is_the_mixture_of_embeddings():
  t = np.zeros(2, np.float32)
  a, b = (np.random.default_rng(i).normal(size=(2, 5)).astype(np.float32) for i in (0, 1))
  module = Embedding(8, 'sinusoidal')
  params = module.init(jax.random.key(0), t, a)
  embed = lambda cond: np.asarray(module.apply(params, t, cond))
  null = embed(0 * a)
  want = .3 * (embed(a) - null) + .7 * (embed(b) - null)
  np.testing.assert_allclose(embed(.3 * a + .7 * b) - null, want, atol=1e-5)


def test_several_conditions_add_up():
  t = np.zeros(2, np.float32)
  style, word = np.ones((2, 3), np.float32), np.full((2, 7), .5, np.float32)
  module = Embedding(8, 'sinusoidal')
  params = module.init(jax.random.key(0), t, dict(style=style, word=word))
  embed = lambda a, b: np.asarray(module.apply(params, t, dict(style=a * style, word=b * word)))
  null = embed(0, 0)
  assert np.abs(embed(1, 0) - null).max() > .1 and np.abs(embed(0, 1) - null).max() > .1
  np.testing.assert_allclose(embed(1, 1) - null, embed(1, 0) + embed(0, 1) - 2 * null, atol=1e-5)


def test_a_span_is_embedded_as_time_is_and_added():
  module, t = Embedding(8, 'sinusoidal'), np.array([3., 700.], np.float32)
  params = nn.meta.unbox(module.init(jax.random.key(0), t, dict(span=t)))['params']
  assert set(params) == {'time0', 'time1', 'span0', 'span1'}
  embed = lambda params, t, cond=None: np.asarray(module.apply(dict(params=params), t, cond))
  swapped = {name.replace('span', 'time'): leaf for name, leaf in params.items() if name.startswith('span')}
  added = embed(params, t, dict(span=t[::-1])) - embed({name: params[name] for name in ('time0', 'time1')}, t)
  np.testing.assert_allclose(added, embed(swapped, t[::-1]), atol=1e-5)


@pytest.mark.parametrize('cond, message', [
  (dict(tokens=np.zeros((2, 77), np.int32)), r"cond\['tokens'\] is int32 \(2, 77\)"),
  (dict(label=np.zeros(2, np.float32)), r"cond\['label'\] is float32 \(2,\)"),
  (dict(context=np.zeros((2, 7, 8), np.float32)), r"cond\['context'\] is float32 \(2, 7, 8\)"),
  (dict(x_mask=np.zeros((2, 5), bool)), r"cond\['x_mask'\] is bool"),
  (dict(span=np.zeros((2, 1), np.float32)), r"cond\['span'\] has the shape \(2, 1\)"),
  (np.zeros((2, 5), np.int32), r"cond\['cond'\] is int32"),
])
def test_a_condition_that_is_no_vector_is_refused(cond, message):
  with pytest.raises(InputError, match=message):
    Embedding(8, 'sinusoidal').init(jax.random.key(0), np.zeros(2, np.float32), cond)
