"""The U-Net's promises, on tiny networks."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import nets
from diffusion.errors import InputError
from diffusion.nets import make
from diffusion.nets.classifier import Classifier
from diffusion.nets.unet import UNet

DEEP = dict(channels=8, multipliers=(1, 2), blocks=1, attention=(4,), groups=4)
TINY = {**DEEP, 'multipliers': (1,)}  # one level compiles faster, for what levels do not touch


def build(shape=(2, 4, 4, 3), cond=None, seed=0, **options):
  """(params, net): all parameters random, so that no path is silent."""
  net = make(UNet(**{**TINY, **options}))
  params = net.init(jax.random.key(seed), shape, cond)
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda a: np.asarray(a) + .2 * rng.normal(size=a.shape).astype(np.float32), params), net.apply


def inputs(shape=(2, 4, 4, 3), seed=1):
  x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
  return x, np.linspace(3., 900., shape[0], dtype=np.float32)


def gradients(net, params, *args):
  """(output, gradients of a sum that weighs every entry of it differently)."""
  def objective(params):
    out = net(params, *args)
    return jnp.vdot(jnp.cos(jnp.arange(out.size, dtype=jnp.float32)), out.ravel()), out
  grads, out = jax.jit(jax.grad(objective, has_aux=True))(params)
  return np.asarray(out), grads


def assert_trees_close(got, want, tolerance):
  """Each leaf to `tolerance` of the largest entry of the whole tree."""
  scale = max(np.abs(a).max() for a in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * scale), got, want)


def run(net, *args):
  return np.asarray(jax.jit(net)(*args))


def test_output_is_exactly_zero_at_the_start_and_only_with_zero_init():
  x, t = inputs()
  for zero_init in (True, False):
    net = make(UNet(**TINY, zero_init=zero_init))
    out = run(net.apply, net.init(jax.random.key(0), x.shape), x, t)
    assert (np.abs(out).max() == 0) == zero_init


@pytest.mark.parametrize('patch', [1, 2])
def test_what_is_kept_enters_as_more_channels_of_the_input_that_are_nothing_at_first(patch):
  x, t = inputs()
  kept = np.random.default_rng(2).normal(size=(2, 4, 4, 4)).astype(np.float32)
  both = dict(image=kept)
  wide, apply = build(cond=both, patch=patch)  # beside x, in one kernel
  apart = make(UNet(**TINY, patch=patch)).init(jax.random.key(0), x.shape, dict(kept=kept))
  whole = wide['in']['kernel'].reshape(3, 3, patch ** 2, 7, -1)
  first, rest = (part.reshape(3, 3, -1, 8) for part in (whole[..., :3, :], whole[..., 3:, :]))
  split = wide | {'in': wide['in'] | dict(kernel=first),
                  'in_kept': dict(zero_kernel=rest, bias=np.zeros(8, np.float32))}
  np.testing.assert_allclose(run(apply, split, x, t, dict(kept=kept)), run(apply, wide, x, t, both), atol=1e-5)
  without = {name: value for name, value in split.items() if name != 'in_kept'}
  fresh = split | dict(in_kept=apart['in_kept'])
  np.testing.assert_array_equal(run(apply, fresh, x, t, dict(kept=kept)), run(apply, without, x, t))


def test_initial_values_are_those_of_the_modules_own_initialisers():
  module = UNet(channels=32, multipliers=(1,), blocks=1, attention=())
  x, t = inputs((1, 4, 4, 3))
  want = jax.tree_util.tree_leaves_with_path(jax.jit(module.init)(jax.random.key(0), x, t)['params'])
  got = jax.tree.leaves(make(module).init(jax.random.key(1), x.shape))
  for (path, a), b in zip(want, got, strict=True):
    assert a.shape == b.shape and a.dtype == b.dtype, path
    np.testing.assert_allclose(np.mean(b), np.mean(a), atol=.03, err_msg=str(path))
    np.testing.assert_allclose(np.std(b), np.std(a), rtol=.1, atol=1e-9, err_msg=str(path))


def test_initial_values_depend_on_the_key_and_not_on_the_batch():
  init = make(UNet(**TINY)).init
  first = init(jax.random.key(0), (2, 8, 8, 3))
  jax.tree.map(np.testing.assert_array_equal, first, init(jax.random.key(0), (7, 8, 8, 3)))
  assert np.any(first['in']['kernel'] != init(jax.random.key(1), (2, 8, 8, 3))['in']['kernel'])


def test_init_can_be_evaluated_abstractly():
  init = make(UNet(**TINY)).init
  abstract = jax.eval_shape(lambda key: init(key, (2, 8, 8, 3)), jax.random.key(0))
  concrete = init(jax.random.key(0), (2, 8, 8, 3))
  kind = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
  assert kind(abstract) == kind(concrete)


@pytest.mark.parametrize('options', [
  dict(),
  dict(resample='block', film=False, patch=2, embedding='fourier', heads=2),
])
def test_fast_and_plain_networks_agree_in_values_and_gradients(options):
  options, shape = {**DEEP, **options}, (2, 8, 16, 3)  # not square
  x, t = inputs(shape)
  params, fast = build(shape, **options, fast=True)
  plain = make(UNet(**options, fast=False)).apply
  (got, got_grads), (want, want_grads) = gradients(fast, params, x, t), gradients(plain, params, x, t)
  np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
  assert_trees_close(got_grads, want_grads, 1e-4)


@pytest.mark.parametrize('shape', [(1, 8, 24, 4), (1, 64, 64, 1)])
def test_every_pixel_and_colour_in_reaches_the_first_pixel_out(shape):
  x, t = inputs(shape)
  params, net = build(shape, **DEEP, out_channels=5)
  def first_pixel(x):
    out = net(params, x, t)
    return out[0, 0, 0].sum(), out
  grad, out = jax.jit(jax.grad(first_pixel, has_aux=True))(x)
  assert out.shape == (*shape[:3], 5) and out.dtype == np.float32
  assert np.all(grad != 0)  # the far corner through the middle's attention


@pytest.mark.parametrize('shape', [(1, 8, 8, 1), (2, 16, 8, 2), (3, 256, 256, 4)])
def test_output_has_the_inputs_shape(shape):
  net = make(UNet())
  x, t = np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)
  assert jax.eval_shape(lambda key: net.apply(net.init(key, shape), x, t), jax.random.key(0)).shape == shape


def test_an_image_does_not_depend_on_the_others_in_its_batch():
  x, t = inputs((7, 4, 4, 3))
  cond = np.eye(7, dtype=np.float32)
  params, net = build(x.shape, cond)
  whole = run(net, params, x, t, cond)
  alone = run(net, params, x[3:4], t[3:4], cond[3:4])
  np.testing.assert_allclose(whole[3:4], alone, rtol=1e-5, atol=1e-5)
  grad = jax.jit(jax.grad(lambda x: net(params, x, t, cond)[3].sum()))(x)
  assert np.all(grad[np.arange(7) != 3] == 0) and np.any(grad[3] != 0)


def test_zeros_are_the_null_condition():
  x, t = inputs()
  params, net = build(cond=np.zeros((2, 5), np.float32))
  without = {**params, 'embedding': {k: v for k, v in params['embedding'].items() if k != 'cond_cond'}}
  np.testing.assert_array_equal(run(net, params, x, t, np.zeros((2, 5), np.float32)), run(net, without, x, t))
  assert np.any(run(net, params, x, t, np.ones((2, 5), np.float32)) != run(net, without, x, t))


def test_rematerialisation_keeps_the_gradients_and_saves_memory():
  x, t = inputs()
  params, net = build()
  lean = make(UNet(**TINY, remat=True)).apply
  assert_trees_close(gradients(lean, params, x, t), gradients(net, params, x, t), 1e-5)
  def kept(net):  # numbers that the backward pass keeps
    backward = jax.eval_shape(lambda p: jax.vjp(lambda p: net(p, x, t), p)[1], params)
    return sum(a.size for a in jax.tree.leaves(backward))
  size = sum(a.size for a in jax.tree.leaves(params))
  assert kept(lean) - size < .5 * (kept(net) - size)


def test_bfloat16_stays_close_to_float32_and_returns_float32():
  x, t = inputs()
  params, net = build(zero_init=False)
  want = run(net, params, x, t)
  got = run(make(UNet(**TINY, zero_init=False, dtype='bfloat16')).apply, params, x, t)
  assert got.dtype == np.float32 and np.any(got != want)
  assert np.sqrt(np.mean((got - want) ** 2)) < .03 * np.std(want)


def test_dropout_acts_only_in_training_and_follows_its_key():
  x, t = inputs()
  params, net = build(dropout=.5)
  calm = make(UNet(**TINY)).apply
  np.testing.assert_array_equal(run(net, params, x, t), run(calm, params, x, t))
  train = jax.jit(lambda seed: net(params, x, t, None, True, {'dropout': jax.random.key(seed)}))
  assert np.any(train(0) != run(calm, params, x, t)) and np.any(train(0) != train(1))
  np.testing.assert_array_equal(train(0), train(0))


@pytest.mark.parametrize('options', [TINY, {**DEEP, 'film': False, 'resample': 'block', 'head_dim': 4}])
def test_every_parameter_gets_a_gradient(options):
  x, t = inputs()
  cond = np.ones((2, 3), np.float32)
  params, net = build(x.shape, cond, **options)
  for path, grad in jax.tree_util.tree_leaves_with_path(gradients(net, params, x, t, cond)[1]):
    assert np.any(grad != 0), jax.tree_util.keystr(path)


def test_time_matters():
  x, _ = inputs()
  params, net = build()
  apply = jax.jit(net)
  early, late = (apply(params, x, np.full(2, t, np.float32)) for t in (1., 2.))
  assert np.abs(early - late).max() > 1e-3


def test_constrain_sees_activations_with_the_batch_in_front_and_changes_nothing():
  shapes = []
  def look(x):
    shapes.append(x.shape)
    return x
  x, t = inputs((3, 4, 4, 3))
  params, net = build(x.shape)
  watched = make(UNet(**TINY, constrain=look)).apply
  np.testing.assert_array_equal(run(watched, params, x, t), run(net, params, x, t))
  assert len(shapes) > 8 and all(shape[0] == 3 for shape in shapes)


@pytest.mark.parametrize('options, shape, words', [
  (dict(), (1, 9, 8, 3), ['height 9', 'by 2', '8 or 10']),
  (dict(patch=4), (1, 16, 20, 3), ['width 20', 'by 8', '16 or 24']),
  (dict(groups=3), (1, 8, 8, 3), ['8 channels', 'groups=3']),
  (dict(heads=3), (1, 8, 8, 3), ['heads=3']),
  (dict(head_dim=5), (1, 8, 8, 3), ['head_dim=5']),
  (dict(channels=9, groups=1), (1, 8, 8, 3), ['channels=9', 'even']),
  (dict(resample='pool'), (1, 8, 8, 3), ["'pool'", "'conv', 'block'"]),
  (dict(dtype='float16'), (1, 8, 8, 3), ["'float16'", "'bfloat16'"]),
  (dict(multipliers=(2, 4), groups=16), (1, 8, 8, 3), ['8 channels', 'groups=16']),
  (dict(heads=0), (1, 8, 8, 3), ['heads=0', 'at least 1']),
  (dict(multipliers=(1, 0)), (1, 8, 8, 3), ['multipliers=(1, 0)']),
  (dict(), (8, 8, 3), ['(8, 8, 3)']),
])
def test_what_does_not_fit_is_refused_by_name_at_init(options, shape, words):
  init = make(UNet(**{**DEEP, **options})).init
  with pytest.raises(InputError) as error:
    init(jax.random.key(0), shape)
  message = str(error.value)
  assert '\n' not in message and all(word in message for word in words), message


def test_only_declared_sizes_are_passed_and_required_ones_must_be_declared():
  assert nets.sized(Classifier, classes=3, out_channels=6, dropout=.5) == dict(classes=3, dropout=.5)
  assert nets.sized(UNet, ['out_channels'], classes=3, out_channels=6) == dict(out_channels=6)
  with pytest.raises(InputError, match='Classifier has no field out_channels; .*channels, multipliers'):
    nets.sized(Classifier, ['out_channels'], classes=3, out_channels=6)
  assert 'parent' not in nets.sized(UNet, parent=None)


def test_settings_have_defaults_for_networks_without_the_fields():
  net = UNet(dtype='bfloat16', remat=True)
  assert nets.setting(net, 'dtype') == 'bfloat16' and nets.setting(net, 'remat') is True
  assert nets.setting(object(), 'dtype') == 'float32' and nets.setting(object(), 'remat') is False


# ---- an image beside x, and a second time
def test_an_image_beside_x_is_extra_channels_of_the_input():
  x, t = inputs()
  image = np.random.default_rng(5).normal(size=(2, 4, 4, 2)).astype(np.float32)
  params, net = build(cond=dict(image=image))
  wide = make(UNet(**TINY, out_channels=3)).apply
  out = run(net, params, x, t, dict(image=image))
  assert out.shape == x.shape
  np.testing.assert_array_equal(out, run(wide, params, np.concatenate([x, image], -1), t))
  without = {**params, 'in': {**params['in'], 'kernel': params['in']['kernel'][:, :, :3]}}
  narrow = make(UNet(**TINY)).apply
  np.testing.assert_allclose(run(net, params, x, t, dict(image=0 * image)), run(narrow, without, x, t), atol=1e-5)


def test_every_pixel_of_the_image_and_the_span_matter():
  x, t = inputs()
  image, span = np.ones((2, 4, 4, 2), np.float32), np.array([5., 900.], np.float32)
  cond = dict(cond=np.eye(2, dtype=np.float32), image=image, span=span)
  params, net = build(cond=cond)
  def first(image, span):
    return net(params, x, t, dict(cond, image=image, span=span))[0].sum()
  image, span = jax.jit(jax.grad(first, (0, 1)))(cond['image'], cond['span'])
  assert np.all(image[0] != 0) and span[0] != 0 and not np.any(image[1]) and span[1] == 0
  for path, grad in jax.tree_util.tree_leaves_with_path(gradients(net, params, x, t, cond)[1]):
    assert np.any(grad != 0), jax.tree_util.keystr(path)


def test_parameters_for_an_entry_exist_only_if_it_does():
  shapes = lambda cond: {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(
    jax.eval_shape(lambda key: make(UNet(**TINY)).init(key, (2, 4, 4, 3), cond), jax.random.key(0)))}
  vector = np.zeros((2, 5), np.float32)
  plain, named = shapes(vector), shapes(dict(cond=vector))
  assert plain == named
  assert shapes(dict(cond=vector, span=np.zeros(2, np.float32))).keys() - plain.keys() == {
    f"['embedding']['span{i}']['{leaf}']" for i in (0, 1) for leaf in ('kernel', 'bias')}
  beside = shapes(dict(cond=vector, image=np.zeros((1, 4, 4, 1), np.float32)))  # an example with another B
  assert beside.keys() == plain.keys()
  assert {name for name in plain if plain[name] != beside[name]} == {"['in']['kernel']"}
  assert beside["['in']['kernel']"] == (3, 3, 4, 8)


@pytest.mark.parametrize('image', [
  np.zeros((2, 2, 2, 3), np.float32), np.zeros((2, 4, 4), np.float32), np.zeros((2, 4, 4, 3), np.uint8),
], ids=['size', 'rank', 'type'])
def test_an_image_of_another_size_or_type_is_refused(image):
  with pytest.raises(InputError, match=r"cond\['image'\] is .*float \[B, 4, 4, C\]"):
    build(cond=dict(image=image))
