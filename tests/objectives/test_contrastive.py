"""Contrastive losses against float64 sums and identities; accumulation against the full batch; the clamp."""
import functools
import math
import os
from pathlib import Path
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core import gaussian, schedules
from diffusion.errors import InputError
from diffusion.nets import Net
from diffusion.objectives import contrastive, timesteps
from diffusion.objectives.contrastive import cached_gradient, LARGEST, sigmoid_loss, softmax_loss, unit

B, D = 24, 7
RNG = np.random.default_rng(0)
LOSSES = dict(softmax=softmax_loss, sigmoid=sigmoid_loss)
SAME = np.array([0, 1, 2, 3, 0, 1, 0, *range(10, 10 + B - 7)])  # captions that occur three times, twice, once
DRAWN = RNG.normal(size=(2, B, D))
IMAGES, TEXTS = (DRAWN / np.linalg.norm(DRAWN, axis=-1, keepdims=True)).astype(np.float32)


def exact(kind, images, texts, scale, bias, same):
  """The loss of a batch as a sum over pairs in float64."""
  logits, total = scale * np.float64(images) @ np.float64(texts).T, 0.
  n = len(logits)
  for i in range(n):
    alike = [j for j in range(n) if same[j] == same[i]]
    if kind == 'sigmoid':
      total -= sum(-math.log1p(math.exp(-(1 if j in alike else -1) * (logits[i, j] + bias))) for j in range(n))
    else:
      for line in (logits[i], logits[:, i]):
        total -= sum(math.log(math.exp(line[j]) / sum(map(math.exp, line))) for j in alike) / len(alike) / 2
  return total / n


@functools.partial(jax.jit, static_argnums=(0, 6))
def mean_loss(kind, images, texts, scale, bias, same, chunks=1):
  return jnp.mean(LOSSES[kind](images, texts, scale, bias, same, chunks))


# By the arguments of mean_loss that are varied.
slope_in = functools.cache(lambda arguments: jax.jit(jax.grad(mean_loss, arguments), static_argnums=(0, 6)))


def value(kind, images=IMAGES, texts=TEXTS, scale=3., bias=-2., same=SAME, chunks=1):
  return float(mean_loss(kind, images, texts, scale, bias, same, chunks))


# ---- the losses
@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('same', [np.arange(B), SAME, np.zeros(B, int)], ids=['different', 'some equal', 'all equal'])
@pytest.mark.parametrize('chunks', [1, 4])
def test_a_loss_is_the_sum_over_pairs(kind, same, chunks):
  assert value(kind, same=same, chunks=chunks) == pytest.approx(exact(kind, IMAGES, TEXTS, 3., -2., same), rel=2e-6)


@pytest.mark.parametrize('kind', LOSSES)
def test_a_loss_does_not_change_with_order_common_rotation_or_the_names_of_the_towers(kind):
  order, turn = RNG.permutation(B), np.linalg.qr(RNG.normal(size=(D, D)))[0].astype(np.float32)
  plain = value(kind)
  for other in (value(kind, IMAGES[order], TEXTS[order], same=SAME[order]), value(kind, IMAGES @ turn, TEXTS @ turn),
                value(kind, TEXTS, IMAGES)):
    assert other == pytest.approx(plain, rel=2e-6)
  assert abs(value(kind, IMAGES, TEXTS[order]) - plain) > .01 and abs(value(kind, IMAGES @ turn) - plain) > .01


def test_equal_vectors_cost_the_logarithm_of_the_batch_and_perfect_ones_nothing():
  one = np.tile(IMAGES[:1], (B, 1))
  assert value('softmax', one, one, same=np.arange(B)) == pytest.approx(math.log(B), rel=1e-6)
  axes = np.eye(B, dtype=np.float32)
  assert value('softmax', axes, axes, 100., same=np.arange(B)) < 1e-6
  assert value('sigmoid', axes, axes, 100., -50., np.arange(B)) < 1e-6
  # Ten captions: copies of one caption share their vectors, and then only positives lower the loss to nothing.
  same = np.arange(B) % 10
  axes = np.eye(10, dtype=np.float32)[same]
  counts = np.bincount(same)[same]
  assert value('softmax', axes, axes, 100., same=np.arange(B)) == pytest.approx(np.log(counts).mean(), rel=1e-5)
  assert value('softmax', axes, axes, 100., same=same) == pytest.approx(np.log(counts).mean(), rel=1e-5)
  slope, wrong = (slope_in(1)('softmax', axes, axes, 100., 0., ids) for ids in (same, np.arange(B)))
  assert np.abs(slope).max() < 1e-5 and np.abs(wrong).max() < 1e-5  # both are at their floor, which is not 0


def test_same_caption_positives_leave_a_tie_where_other_losses_break_it():
  """An image that fits the first of two equal captions better: only without positives does it pay to part them."""
  same, texts = np.array([0, 0, 1]), np.asarray(unit(np.array([[1., .2, 0], [1., -.2, 0], [0, 0, 1]])))
  slopes = [np.asarray(slope_in(2)('softmax', texts, texts, 5., 0., ids)) for ids in (same, np.arange(3))]
  parting = [float(slope[0] @ [0, 1, 0] - slope[1] @ [0, 1, 0]) for slope in slopes]
  assert parting[0] > 0 > parting[1]  # a step down the slope brings them together, or apart


@pytest.mark.parametrize('kind', LOSSES)
def test_slopes_of_scale_and_bias_have_their_closed_forms(kind):
  same = np.arange(B)
  ds, db = slope_in((3, 4))(kind, IMAGES, TEXTS, 3., -2., same, 3)
  cosines = np.float64(IMAGES) @ np.float64(TEXTS).T
  if kind == 'softmax':
    p = np.exp(3 * cosines)
    rows, columns = p / p.sum(1, keepdims=True), p / p.sum(0)
    assert float(ds) == pytest.approx(((rows + columns) / 2 * cosines).sum() / B - np.trace(cosines) / B, rel=1e-4)
    assert float(db) == 0
  else:
    sign = 2 * np.eye(B) - 1
    slope = -sign / (1 + np.exp(sign * (3 * cosines - 2)))
    assert float(db) == pytest.approx(slope.sum() / B, rel=1e-5)
    assert float(ds) == pytest.approx((slope * cosines).sum() / B, rel=1e-5)


@pytest.mark.parametrize('kind', LOSSES)
def test_chunks_change_rounding_alone_also_of_the_gradient_and_hold_fewer_logits(kind):
  loss = lambda chunks: lambda a, b, s: jnp.sum(LOSSES[kind](a, b, s, -2., SAME, chunks))
  slope = lambda chunks: jax.jit(jax.grad(loss(chunks), (0, 1, 2)))
  whole = slope(1)(IMAGES, TEXTS, 3.)
  for chunks in (2, 6, 24):
    for part, other in zip(slope(chunks)(IMAGES, TEXTS, 3.), whole):
      np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-5)
  shape, n = jax.ShapeDtypeStruct((2048, 8), np.float32), 2048 ** 2 * 4
  ids = jax.ShapeDtypeStruct((2048,), np.int32)
  def held(chunks):
    loss = lambda a, b, same: jnp.mean(LOSSES[kind](a, b, 3., -2., same, chunks))
    return jax.jit(jax.grad(loss, (0, 1))).lower(shape, shape, ids).compile().memory_analysis().temp_size_in_bytes
  assert held(1) > n and held(32) < n / 4


# ---- the objective, with linear towers
def linear_net(timed=False):
  """Images [B, 4, 4, 1] and tokens [B, 3] -> [B, D], by a hidden layer each; dropout in the image tower."""
  def init(key, shape, cond):
    draw = lambda *size: np.random.default_rng(sum(size)).normal(size=size).astype(np.float32) * .4
    return dict(image=draw(17, 32), out=draw(32, D), words=draw(9, 32), text=draw(32, D))

  def apply(params, x, time, cond=None, train=False, rngs=None):
    told = time[:, None] / 1000 if timed else jnp.ones((len(x), 1))
    h = jnp.tanh(jnp.concatenate([x.reshape(len(x), -1), told], 1) @ params['image'])
    if train and timed:
      h = h * jax.random.bernoulli(rngs['dropout'], .8, h.shape)
    return h @ params['out']

  def prepare(params, cond):
    return jnp.sum(jnp.tanh(params['words'])[cond['tokens']] * cond['weights'][..., None], 1) @ params['text']
  return Net(init, apply, prepare)


X0 = RNG.normal(size=(B, 4, 4, 1)).astype(np.float32)
TOKENS = RNG.integers(0, 9, (B, 3))
COND = dict(tokens=TOKENS, weights=np.ones((B, 3), np.float32),
            same=np.unique(TOKENS, axis=0, return_inverse=True)[1].ravel())
TABLE = schedules.cosine(T=20)


def objective(kind='softmax', noised=False, chunks=1, batch=B, cond=COND):
  return contrastive.contrastive(kind, chunks, noised, net=linear_net, schedule=TABLE, example=(X0[:1], cond),
                                 predict=gaussian.predict_x0(), timesteps=timesteps.stratified(), batch=batch)


def loss_of(made, key=jax.random.key(3), train=True):
  return lambda params, part=None: made.loss(key, params, X0, COND, train=train, part=part)


def flat(tree):
  return np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)])


@functools.cache
def gradients_of(kind):
  """(gradient(parts), the gradient of the mean of two micro-batches)."""
  made, (params, _) = objective(kind), objective(kind).init(jax.random.key(0))
  mean_alone = lambda p: jnp.mean(jnp.stack([
    made.loss(jax.random.key(3), p, X0[i::2], jax.tree.map(lambda a: a[i::2], COND))[0] for i in (0, 1)]))
  gradient = functools.cache(lambda parts: jax.jit(lambda p: made.gradient(loss_of(made), p, parts))(params))
  return gradient, jax.jit(jax.grad(mean_alone))(params)


@pytest.mark.parametrize('kind', LOSSES)
@pytest.mark.parametrize('parts', [2, 3, 24])
def test_the_accumulated_gradient_is_that_of_the_full_batch(kind, parts):
  gradient, parts_alone = gradients_of(kind)
  whole, cached = (jax.device_get(gradient(n)) for n in (1, parts))
  assert float(cached[0][0]) == pytest.approx(float(whole[0][0]), rel=1e-6)
  assert np.linalg.norm(flat(cached[1]) - flat(whole[1])) < 1e-6 * np.linalg.norm(flat(whole[1]))
  np.testing.assert_allclose(cached[0][1]['each'], whole[0][1]['each'], rtol=1e-5)  # in the order of the batch
  assert np.linalg.norm(flat(parts_alone) - flat(whole[1])) > .01  # the mean of micro-batches is another gradient


def test_accumulation_of_a_noised_loss_with_dropout_is_the_gradient_of_one_loss():
  """Not that of the full batch, whose dropout differs; but its slope along a direction is that of its own values."""
  made = objective(noised=True)
  params, _ = made.init(jax.random.key(0))
  (_, metrics), slope = jax.jit(lambda params: cached_gradient(loss_of(made), params, 3))(params)
  along = jax.tree.map(lambda a: np.random.default_rng(1).normal(size=a.shape).astype(np.float32), params)
  moved = jax.jit(lambda h: loss_of(made)(jax.tree.map(lambda p, d: p + h * d, params, along), part=3)[0])
  at = lambda h: float(moved(h))
  assert (at(1e-3) - at(-1e-3)) / 2e-3 == pytest.approx(flat(slope) @ flat(along), rel=1e-2)
  assert metrics['logsnr'].shape == (B,) and len(np.unique(metrics['logsnr'])) > B / 2


def test_activations_of_one_part_are_held_at_a_time():
  made = contrastive.contrastive(net=linear_net, schedule=TABLE, example=(X0[:1], COND), predict=gaussian.predict_x0(),
                                 timesteps=timesteps.stratified(), batch=4096)
  params, _ = made.init(jax.random.key(0))
  params |= dict(image=np.zeros((17, 2048), np.float32), out=np.zeros((2048, D), np.float32))
  wide = lambda a: jax.ShapeDtypeStruct((512, *a.shape[1:]), a.dtype)
  x0, cond = jax.tree.map(wide, (X0, COND))
  def held(parts):
    step = lambda params, x0, cond: cached_gradient(
      lambda p, part=None: made.loss(jax.random.key(0), p, x0, cond, part=part), params, parts)
    return jax.jit(step).lower(params, x0, cond).compile().memory_analysis().temp_size_in_bytes
  assert held(16) < held(1) / 2


def test_the_scale_reaches_its_bound_stays_there_and_leaves_it_again():
  """Two pairs that are told apart by little, so that a higher scale is always better; then the same, exchanged."""
  made = objective()
  start = {name: made.init(jax.random.key(0))[0][name] for name in ('logit_scale',)}
  assert float(jnp.exp(start['logit_scale'])) == pytest.approx(1 / .07, rel=1e-6)
  images = np.asarray(unit(np.array([[1., .1], [1., -.1]])))

  @functools.partial(jax.jit, static_argnums=2)
  def descended(params, texts, steps):
    loss = lambda p: jnp.mean(softmax_loss(images, texts, jnp.exp(p['logit_scale']), 0., np.arange(2)))
    def step(params, _):
      slope = jax.grad(loss)(params)
      params = made.after(jax.tree.map(lambda p, g: p - 2 * g, params, slope), 0)
      return params, (params['logit_scale'], slope['logit_scale'])
    return jax.lax.scan(step, params, None, steps)
  params, (scales, slopes) = descended(start, images, 1000)
  assert scales.max() == scales[-1] == np.float32(LARGEST) and np.exp(np.float64(scales[-1])) <= 100 * (1 + 1e-6)
  assert abs(float(slopes[-1])) > 1e-2  # alive at the bound
  params, (scales, _) = descended(params, images[::-1], 10)
  assert scales[0] < LARGEST - .01
  assert made.after(dict(logit_scale=jnp.float32(-1.)), 0)['logit_scale'] == 0 and made.after({}, 0) == {}


def test_the_bias_starts_at_the_share_of_positives():
  """Where the logits are 0, the loss of the bias alone is least at log(p / (1 - p)), p = 1 / B."""
  start = float(objective('sigmoid').init(jax.random.key(0))[0]['logit_bias'])
  zeros = np.zeros((B, D), np.float32)
  slope = lambda b: slope_in(4)('sigmoid', zeros, zeros, 10., b, np.arange(B))
  assert abs(float(slope(start))) < 1e-5 < abs(float(slope(start + .1)))
  assert float(contrastive._start_sigmoid(32_768)['logit_bias']) == pytest.approx(-10, abs=.5)  # the paper's


def test_a_noised_objective_sees_the_level_and_its_model_too():
  made, plain = objective(noised=True), objective()
  assert made.schedule(None) is TABLE and plain.schedule(None) is None
  params, _ = made.init(jax.random.key(0))
  model = made.model(params, (), ())
  embed = jax.jit(model.embed_image)
  at = lambda row: np.asarray(embed(X0, gaussian.take(TABLE, row)))
  assert np.abs(at(2) - at(15)).max() > 1e-3
  np.testing.assert_allclose(np.linalg.norm(at(2), axis=1), 1, rtol=1e-5)
  np.testing.assert_allclose(embed(X0), at(0), atol=1e-6)
  np.testing.assert_allclose(np.linalg.norm(jax.jit(model.embed_text)(COND), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize('options, message', [
  (dict(kind='infonce'), "loss='infonce'"), (dict(batch=1), 'config.batch=1'), (dict(chunks=5), 'chunks=5'),
  (dict(chunks=0), 'chunks=0'), (dict(noised=1), 'noised=1'), (dict(cond=None), "config.task='pairs'"),
  (dict(cond=dict(tokens=TOKENS)), "config.task='pairs'")])
def test_what_does_not_fit_is_named(options, message):
  with pytest.raises(InputError, match=message) as error:
    objective(**options)
  assert '\n' not in str(error.value)


PROGRAM = """
import jax, numpy as np, sys
from diffusion.objectives.contrastive import cached_gradient
from diffusion.system import sharding
from tests.objectives import test_contrastive as t
found = []
for devices in (8, 1):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  for kind in t.LOSSES:
    made = t.objective(kind, chunks=3)
    params, _ = made.init(jax.random.key(0))
    batch = sharding.put_batch((t.X0, t.COND), mesh)
    def step(params, x0, cond):
      return cached_gradient(lambda p, part=None: made.loss(jax.random.key(3), p, x0, cond, part=part), params, 3)
    found.append(jax.device_get(jax.jit(step)(params, *batch)))
assert jax.device_count() == 8
for a, b in zip(found[:2], found[2:]):
  np.testing.assert_allclose(a[0][0], b[0][0], rtol=2e-6)
  np.testing.assert_allclose(a[0][1]['each'], b[0][1]['each'], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), a[1], b[1])
"""


def test_eight_devices_give_what_one_gives():
  flags = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
  env = dict(os.environ, XLA_FLAGS=flags, NPROC='16')
  done = subprocess.run([sys.executable, '-c', PROGRAM], env=env, cwd=Path(__file__).parents[2], capture_output=True,
                        text=True, timeout=300)
  assert done.returncode == 0, done.stderr
