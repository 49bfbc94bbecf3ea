"""The cost of a program before it runs: floating-point operations, bytes, and what would make it fit.

A multiplication and an addition are 2 FLOPs; only matrix products and convolutions count, as in published figures.
"""
import itertools
import math
import os
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


# ---- floating-point operations
def flops(f, *args):
  """FLOPs of the matrix products and convolutions in f(*args), summed over all devices.

  The body of a scan counts once per iteration, a conditional as its most expensive branch, and a while loop, whose
  number of iterations is unknown, as one iteration. A convolution counts padding like pixels (as published figures do,
  and XLA's cost_analysis does not), but not the holes of a dilated input (otherwise the gradient of a strided
  convolution would cost stride^2 times the convolution). Rematerialisation counts: for model FLOPs, pass the function
  without it.

  Args:
    f: a function of JAX arrays; it is traced, not run.
    args: trees of arrays, or of jax.ShapeDtypeStruct.
  Returns:
    int.
  """
  return _of_jaxpr(jax.make_jaxpr(f)(*args).jaxpr)


def _of_jaxpr(jaxpr):
  return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(eqn):
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
  if name == 'conv_general_dilated':
    return _of_convolution(*(v.aval.shape for v in (*eqn.invars, *eqn.outvars)), params)
  inner = [_of_jaxpr(jaxpr) for jaxpr in _jaxprs(params)]
  if name == 'cond':
    return max(inner)
  repeats = params['length'] if name == 'scan' else params['mesh'].size if name == 'shard_map' else 1
  return repeats * sum(inner)


def _jaxprs(params):
  """The programs inside an equation of any primitive: jit, scan, cond, while, checkpoint, custom gradients."""
  is_program = lambda value: hasattr(value, 'eqns') or hasattr(value, 'jaxpr')
  for value in jax.tree.leaves(list(params.values()), is_leaf=is_program):
    jaxpr = getattr(value, 'jaxpr', value)  # closed or open
    if hasattr(jaxpr, 'eqns'):
      yield jaxpr


def _of_convolution(lhs, rhs, out, params):
  spec = params['dimension_numbers']  # positions of (batch or output features, features, *spatial axes)
  taps = 1
  for axis, (low, _) in enumerate(params['padding']):
    places = np.arange(out[spec.out_spec[2 + axis]])[:, None] * params['window_strides'][axis]
    places = places + np.arange(rhs[spec.rhs_spec[2 + axis]]) * params['rhs_dilation'][axis] - low
    taps *= int(np.sum(places % params['lhs_dilation'][axis] == 0))  # pairs of output pixel and tap, without holes
  batch, features = (out[d] for d in spec.out_spec[:2])
  return 2 * batch * features * taps * rhs[spec.rhs_spec[1]]  # the kernel has the input features of one group


# ---- devices
class Chip(NamedTuple):
  """The data sheet of what JAX counts as one device: FLOP/s without sparsity, bytes/s, bytes."""
  bfloat16: float  # of matrix products; float16 on GPUs older than A100
  float32: float  # as XLA multiplies float32 by default: one bfloat16 pass on TPUs, TF32 on GPUs from A100 on
  bandwidth: float  # of its memory
  memory: float
  link: float  # bytes/s to other chips, over all links, in one direction


def _tpu(teraflops, bandwidth, memory, link):
  return Chip(teraflops * 1e12, teraflops * 1e12, bandwidth * 1e9, memory * 2 ** 30, link * 1e9)


def _gpu(half, single, bandwidth, memory, link):
  return Chip(half * 1e12, single * 1e12, bandwidth * 1e9, memory * 1e9, link * 1e9)


# By jax.Device.device_kind. TPUs: cloud.google.com/tpu/docs/system-architecture-tpu-vm and its pages for v2 to v6e
# (links of v2 and v3: Jouppi et al. 2020, 'A domain-specific supercomputer for training deep neural networks', table
# 3). JAX counts the two cores of a v2 or v3 chip as two devices. GPUs: NVIDIA's data sheets; NVLink, otherwise PCIe.
PEAKS = {
  'TPU v2': _tpu(22.5, 350, 8, 124),
  'TPU v3': _tpu(61.5, 450, 16, 164),
  'TPU v4': _tpu(275, 1228, 32, 300),
  'TPU v5 lite': _tpu(197, 819, 16, 200),
  'TPU v5': _tpu(459, 2765, 95, 600),
  'TPU v6 lite': _tpu(918, 1638, 32, 400),
  'Tesla V100-SXM2-16GB': _gpu(125, 15.7, 900, 16, 150),
  'Tesla V100-SXM2-32GB': _gpu(125, 15.7, 900, 32, 150),
  'Tesla T4': _gpu(65, 8.1, 320, 16, 16),
  'NVIDIA A100-SXM4-40GB': _gpu(312, 156, 1555, 40, 300),
  'NVIDIA A100-SXM4-80GB': _gpu(312, 156, 2039, 80, 300),
  'NVIDIA A100-PCIE-40GB': _gpu(312, 156, 1555, 40, 32),
  'NVIDIA A100 80GB PCIe': _gpu(312, 156, 1935, 80, 32),
  'NVIDIA H100 80GB HBM3': _gpu(989, 494, 3350, 80, 450),
  'NVIDIA H100 PCIe': _gpu(756, 378, 2000, 80, 64),
  'NVIDIA H200': _gpu(989, 494, 4800, 141, 450),
  'NVIDIA L4': _gpu(121, 60, 300, 24, 32),
  'NVIDIA L40S': _gpu(362, 183, 864, 48, 32),
  'NVIDIA GeForce RTX 3090': _gpu(71, 35.6, 936, 24, 32),
  'NVIDIA GeForce RTX 4090': _gpu(165, 82.6, 1008, 24, 32),
}
# The names in some versions of JAX.
PEAKS |= {'TPU v5e': PEAKS['TPU v5 lite'], 'TPU v5p': PEAKS['TPU v5'], 'TPU v6e': PEAKS['TPU v6 lite']}


def peak(device, dtype):
  """Peak FLOP/s of a device in matrix products of a dtype; None if unknown (CPUs, chips not in PEAKS)."""
  chip = PEAKS.get(device.device_kind)
  return chip and (chip.bfloat16 if jnp.dtype(dtype).itemsize == 2 else chip.float32)


# ---- memory
def memory_available(device):
  """Bytes of a device that programs can use, or None if it does not report them.

  CPU: the memory available now, divided by the number of devices simulated on it.
  """
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats:
    return stats.get('bytes_limit')
  if device.platform != 'cpu':
    return None
  return _available() // len([other for other in jax.local_devices() if other.platform == 'cpu'])


def _available():
  try:
    with open('/proc/meminfo') as lines:  # without swapping; sysconf counts only memory that is not used at all
      return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
  except (OSError, StopIteration):
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def memory_needed(compiled):
  """Bytes per device of a compiled program: arguments, outputs that do not reuse an argument, temporaries, code."""
  sizes = compiled.memory_analysis()
  return (sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
          + sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes)


def exhausted(message):
  """(bytes needed, bytes of the device) from a TPU compiler's error that a program does not fit into memory.

  Args:
    message: the full text of the error.
  Returns:
    None if the error is about something else, such as the small memory of a core (VMEM), which does not depend on the
    settings of a run.
  """
  if 'RESOURCE_EXHAUSTED' not in message or 'hbm' not in message.lower():
    return None
  sizes = re.findall(r'([\d.]+)([KMGT])(?![\w.])', message)
  if len(sizes) < 2:
    return None
  return tuple(float(number) * 1024 ** ('KMGT'.index(unit) + 1) for number, unit in sizes[:2])


RESERVE = .05  # fraction of a device's memory that estimates leave free
REMAT_KEEPS = .35  # fraction of the activations that remat=True keeps, an estimate: a block's input, of some 7 arrays


def advice(needed, available, batch, devices, fsdp, accumulate, remat, state_bytes):
  """Changes that would make a train step fit, as one line of text; '' if it fits.

  Everything but the state is taken to be activations: they shrink with the number of images that a device processes at
  a time, the state with fsdp.

  Args:
    needed: bytes per device of the step (memory_needed).
    available: bytes per device (memory_available).
    batch, devices, fsdp, accumulate, remat: as compiled; remat: whether blocks are rematerialised.
    state_bytes: of the state on one device, as compiled.
  """
  if needed <= available:
    return ''
  room, activations, current = available * (1 - RESERVE), needed - state_bytes, (accumulate, 1, fsdp)
  parts = [k for k in _doubled(accumulate, batch) if batch % (k * devices) == 0]
  shares = [n for n in _doubled(fsdp, devices) if devices % n == 0]
  estimate = lambda k, keeps, n: state_bytes * fsdp / n + activations * accumulate / k * keeps
  settings = itertools.product(parts, (1,) if remat else (1, REMAT_KEEPS), shares)
  options = [f'{_named(option, current)} (about {_gb(estimate(*option))})'
             for option in _smallest_changes([s for s in settings if estimate(*s) <= room], current)]
  smaller = int((room - state_bytes) / activations * batch) // (devices * accumulate) * devices * accumulate
  if smaller > 0:
    options.append(f'config.batch={smaller}, which changes the training')
  need = f'the step needs {_gb(needed)} per device, {_gb(state_bytes)} of it state, and {_gb(available)} are available'
  return f'{need}: ' + ('try ' + '; or '.join(options) if options else
                        'use more devices, devices with more memory, or a smaller network')


def _smallest_changes(settings, current):
  """Of the settings that change the fewest values, the first of each kind of change; `settings` are ascending."""
  changes = lambda setting: tuple(new != old for new, old in zip(setting, current))
  fewest = min((sum(changes(setting)) for setting in settings), default=0)
  smallest = {changes(setting): setting for setting in reversed(settings) if sum(changes(setting)) == fewest}
  return list(reversed(smallest.values()))


def _doubled(start, end):
  """start, 2 start, 4 start, .. up to end."""
  return [start << i for i in range(64) if start << i <= end]


def _named(setting, current):
  words = (f'config.grad_accumulation={setting[0]}', 'remat=True in config.net', f'config.fsdp={setting[2]}')
  return ' with '.join(word for word, new, old in zip(words, setting, current) if new != old)


def _gb(number):
  return f'{number / 1e9:.2f} GB'
