"""FLOPs against sums done by hand, a published count and XLA's own; memory; advice that keeps its word."""
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion import nets
from diffusion.nets.unet import UNet
from diffusion.system import flops

F = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)


def conv(x, w, stride=1, padding='SAME', **options):
  return jax.lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options)


CONVOLUTIONS = {  # multiplications of one output pixel and channel, times how many there are, times 2
  'plain': (F(2, 8, 6, 3), F(3, 3, 3, 5), {}, 2 * (2 * 8 * 6 * 5) * (3 * 3 * 3)),
  'valid': (F(2, 8, 6, 3), F(3, 3, 3, 5), dict(padding='VALID'), 2 * (2 * 6 * 4 * 5) * (3 * 3 * 3)),
  'strided': (F(2, 8, 6, 3), F(3, 3, 3, 5), dict(stride=2), 2 * (2 * 4 * 3 * 5) * (3 * 3 * 3)),
  'dilated': (F(2, 8, 6, 3), F(3, 3, 3, 5), dict(rhs_dilation=(2, 2)), 2 * (2 * 8 * 6 * 5) * (3 * 3 * 3)),
  'grouped': (F(2, 8, 6, 4), F(3, 3, 2, 6), dict(feature_group_count=2), 2 * (2 * 8 * 6 * 6) * (3 * 3 * 2)),
  # 4 pixels with a zero between each two: of a row's 7 outputs 4 see one pixel and 3 see two.
  'transposed': (F(1, 4, 4, 3), F(3, 3, 3, 5), dict(lhs_dilation=(2, 2), padding=[(1, 1)] * 2), 2 * (4 * 1 + 3 * 2) ** 2 * 3 * 5),
}


@pytest.mark.parametrize('case', CONVOLUTIONS)
def test_convolutions_by_hand(case):
  x, w, options, expected = CONVOLUTIONS[case]
  assert flops.flops(lambda x, w: conv(x, w, **options), x, w) == expected


@pytest.mark.parametrize('case', ['plain', 'valid', 'strided', 'grouped'])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_does(case):
  x, w, options, forward = CONVOLUTIONS[case]
  loss = lambda x, w: conv(x, w, **options).sum()
  assert flops.flops(jax.grad(loss, 1), x, w) == 2 * forward
  if case != 'valid':  # whose gradient by x pads more than the convolution did
    assert flops.flops(jax.grad(loss, (0, 1)), x, w) == 3 * forward


def test_attention_and_a_scan_by_hand():
  B, N, H, D, S = 2, 7, 3, 5, 11
  def attend(q, k, v):
    return jnp.einsum('bhqk,bkhd->bqhd', jax.nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k)), v)
  one = 2 * 2 * B * H * N * N * D
  assert flops.flops(attend, *[F(B, N, H, D)] * 3) == one
  steps = lambda q, k, v: jax.lax.scan(lambda q, _: (attend(q, k, v), None), q, length=S)[0]
  assert flops.flops(steps, *[F(B, N, H, D)] * 3) == S * one
  twice = lambda q, k, v: jax.lax.scan(lambda q, _: (steps(q, k, v), None), q, length=2)[0]
  assert flops.flops(twice, *[F(B, N, H, D)] * 3) == 2 * S * one


def test_through_every_kind_of_call():
  one, a = 2 * 4 ** 3, F(4, 4)
  custom = jax.custom_vjp(lambda a: a @ a)
  custom.defvjp(lambda a: (a @ a, a), lambda a, g: (g @ a.T + a.T @ g,))
  linear = jax.custom_jvp(lambda a: a @ a)
  linear.defjvp(lambda a, da: (a[0] @ a[0], da[0] @ a[0] + a[0] @ da[0]))
  for f in (jax.jit(lambda a: a @ a), custom, linear, jax.checkpoint(lambda a: a @ a)):
    assert flops.flops(f, a) == one
  assert flops.flops(jax.grad(lambda a: custom(a).sum()), a) == 3 * one
  again = jax.grad(lambda a: jax.checkpoint(lambda a: jnp.sin(a @ a))(a).sum())
  assert flops.flops(again, a) == flops.flops(jax.grad(lambda a: jnp.sin(a @ a).sum()), a) + one  # sin's argument is computed again
  dearer = lambda a: jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)
  assert flops.flops(dearer, a) == 2 * one
  assert flops.flops(lambda a: jax.lax.while_loop(lambda a: a[0, 0] > 0, lambda a: a @ a, a), a) == one
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]), ('x',))
  spec = jax.sharding.PartitionSpec('x')
  assert flops.flops(jax.shard_map(lambda a: a @ a, mesh=mesh, in_specs=spec, out_specs=spec), a) == one


def test_the_published_count_of_the_cifar10_network():
  """6.1 G multiplications a picture without those of attention (arXiv:2305.10924, table 1, 35.7 million parameters)."""
  init, net = nets.make(UNet(channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), film=False, groups=32, fast=False))
  params = jax.eval_shape(lambda key: init(key, (1, 32, 32, 3)), jax.random.key(0))
  assert abs(sum(a.size for a in jax.tree.leaves(params)) / 1e6 - 35.7) < .05
  forward = flops.flops(net, params, F(4, 32, 32, 3), F(4))
  attention = 2 * 256 * (5 * 256 ** 2 + 16 ** 2)  # five at 16x16 pixels and the middle at 4x4, of 256 channels
  assert abs((forward / 2 / 4 - attention) / 1e9 - 6.1) < .05


def test_training_a_network_costs_three_times_its_forward_pass():
  init, net = nets.make(UNet(channels=16, multipliers=(1, 2), blocks=1, attention=(4,), fast=False))
  params = jax.eval_shape(lambda key: init(key, (1, 8, 8, 3)), jax.random.key(0))
  args = params, F(4, 8, 8, 3), F(4)
  trained = flops.flops(jax.grad(lambda *args: net(*args).sum()), *args)
  assert 2.95 < trained / flops.flops(net, *args) < 3  # the first layer has no gradient by its input


def test_xla_counts_the_same_of_a_network_without_padding():
  def net(params, x):
    a, b, c = params
    h = conv(jax.nn.relu(conv(x, a, padding='VALID')), b, stride=2, padding='VALID')
    return jnp.square(h.reshape(len(x), -1) @ c).sum()
  args = [F(3, 3, 8, 64), F(3, 3, 64, 64), F(5 * 5 * 64, 128)], F(16, 13, 13, 8)
  counted = jax.jit(net).lower(*args).compile().cost_analysis()['flops']
  assert abs(flops.flops(net, *args) / counted - 1) < .01  # the rest is element by element


# ---- memory and devices
def test_memory_needed_counts_a_donated_argument_once():
  a = F(256, 1024)
  size = 4 * 256 * 1024
  needed = lambda donated: flops.memory_needed(jax.jit(lambda a: a + 1, donate_argnums=donated).lower(a).compile())
  assert 2 * size <= needed(()) < 2.1 * size and size <= needed(0) < 1.1 * size


def test_memory_there_is_what_the_machine_has():
  device = jax.devices()[0]
  total = int(re.search(r'MemTotal: *(\d+)', open('/proc/meminfo').read()).group(1)) * 1024
  assert 2 ** 20 < flops.memory_there(device) * len(jax.devices()) < total
  assert flops.memory_there(SimpleNamespace(platform='tpu', memory_stats=lambda: dict(bytes_limit=7))) == 7
  assert flops.memory_there(SimpleNamespace(platform='tpu', memory_stats=lambda: None)) is None


def test_peaks_are_known_by_kind_and_type():
  chip = lambda kind: SimpleNamespace(device_kind=kind)
  assert flops.peak(chip('TPU v5 lite'), 'bfloat16') == 197e12
  assert flops.peak(chip('NVIDIA A100-SXM4-80GB'), jnp.float32) == flops.peak(chip('NVIDIA A100-SXM4-80GB'), jnp.float16) / 2
  assert flops.peak(jax.devices()[0], 'float32') is None
  for name, other, published in (('TPU v5e', 'TPU v5 lite', 197e12), ('TPU v5p', 'TPU v5', 459e12), ('TPU v6e', 'TPU v6 lite', 918e12)):
    assert flops.peak(chip(name), 'bfloat16') == flops.peak(chip(other), 'bfloat16') == published


def test_what_a_compiler_says_of_memory():
  for text in ('RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
               'temporaries (33.53G) exceeds available HBM (15.75G). HLO module: jit_f.',
               'RESOURCE_EXHAUSTED: Used 33.53G of 15.75G hbm. Exceeded by 17.78G.'):
    assert flops.exhausted(text) == (33.53 * 2 ** 30, 15.75 * 2 ** 30)
  vmem = 'RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Scoped allocation with size 20.00M and limit 16.00M exceeded'
  for text in ('INTERNAL: 3G of 4G hbm', 'RESOURCE_EXHAUSTED: threads', 'RESOURCE_EXHAUSTED: no more hbm', vmem):
    assert flops.exhausted(text) is None


# ---- advice
GB = 1e9


def follow(text, state, activations, accumulate, fsdp):
  """The needs after each of the changes that a line of advice offers."""
  for option in text.split('try ')[1].split('; or '):
    k = int((re.findall(r'grad_accumulation=(\d+)', option) or [accumulate])[0])
    n = int((re.findall(r'fsdp=(\d+)', option) or [fsdp])[0])
    keeps = flops.REMAT_KEEPS if 'remat' in option else 1
    batch = float((re.findall(r'batch=(\d+)', option) or [1024])[0]) / 1024
    yield option, state * fsdp / n + activations * accumulate / k * keeps * batch


@pytest.mark.parametrize('state, activations, accumulate, fsdp',
                         [(2, 30, 1, 1), (20, 2, 1, 1), (20, 30, 2, 2), (9, 8, 4, 1), (40, 200, 1, 4)])
def test_what_is_advised_fits_and_half_of_it_does_not(state, activations, accumulate, fsdp):
  advice = lambda there: flops.advice((state + activations) * GB, there * GB, 1024, 32, fsdp, accumulate, False, state * GB)
  assert advice(state + activations) == ''
  options = list(follow(advice(16), state, activations, accumulate, fsdp))
  assert options and all(needs <= 16 for _, needs in options), options
  for option, _ in options:  # the smallest change of its kind
    if re.fullmatch(r'config\.(accumulate|fsdp)=\d+ .*', option) and ' with ' not in option:
      name, number = re.match(r'config\.(\w+)=(\d+)', option).groups()
      half = dict(accumulate=accumulate, fsdp=fsdp) | {name: int(number) // 2}
      assert state * fsdp / half['fsdp'] + activations * accumulate / half['accumulate'] > 16 * .95


def test_advice_says_what_it_found_and_gives_up_where_nothing_helps():
  text = flops.advice(32 * GB, 16 * GB, 1024, 32, 1, 1, False, 2 * GB)
  assert '32.00 GB' in text and '2.00 GB are state' in text and 'there are 16.00 GB' in text
  assert 'config.grad_accumulation=4' in text and 'remat=True' in text and 'fsdp' not in text  # the state is not what is too large
  assert 'remat' not in flops.advice(32 * GB, 16 * GB, 1024, 32, 1, 1, True, 2 * GB)
  assert 'config.fsdp=2' in flops.advice(21 * GB, 16 * GB, 1024, 32, 1, 1, False, 20 * GB)
  hopeless = flops.advice(900 * GB, 16 * GB, 1, 1, 1, 1, False, 890 * GB)
  assert 'try' not in hopeless and 'smaller network' in hopeless
