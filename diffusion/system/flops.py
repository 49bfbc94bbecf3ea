"""What a program costs, before it runs: floating-point operations, bytes, and what would make it fit.

One multiplication and one addition are 2 FLOPs; only matrix products and convolutions count, as in published figures.
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
  """FLOPs of the matrix products and convolutions in f(*args), of all devices together.

  The bodies of scans count once a round. Of a condition the dearest branch counts. A while loop, whose rounds nobody knows, counts
  one round. A convolution counts padding as the pixels that it stands for (published figures do; XLA's cost_analysis does not), but
  not the holes of a dilated input (the gradient of a strided convolution would come out stride^2 times dearer than the convolution).
  What rematerialisation computes again counts: for model FLOPs give the function without it.

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
  times = params['length'] if name == 'scan' else params['mesh'].size if name == 'shard_map' else 1
  return times * sum(inner)


def _jaxprs(params):
  """The programs inside an equation, of whichever primitive: jit, scan, cond, while, checkpoint, custom gradients."""
  for value in jax.tree.leaves(list(params.values()), is_leaf=lambda v: hasattr(v, 'eqns') or hasattr(v, 'jaxpr')):
    jaxpr = getattr(value, 'jaxpr', value)  # closed or open
    if hasattr(jaxpr, 'eqns'):
      yield jaxpr


def _of_convolution(lhs, rhs, out, params):
  spec = params['dimension_numbers']  # positions of (batch or output features, features, *spatial axes)
  taps = 1
  for axis, (low, _) in enumerate(params['padding']):
    places = np.arange(out[spec.out_spec[2 + axis]])[:, None] * params['window_strides'][axis]
    places = places + np.arange(rhs[spec.rhs_spec[2 + axis]]) * params['rhs_dilation'][axis] - low
    taps *= int(np.sum(places % params['lhs_dilation'][axis] == 0))  # pairs of an output pixel and a tap that is no hole
  batch, features = (out[d] for d in spec.out_spec[:2])
  return 2 * batch * features * taps * rhs[spec.rhs_spec[1]]  # a kernel's input features are those of one group


# ---- devices
class Chip(NamedTuple):
  """A device as JAX counts them, by its data sheet: FLOP/s without sparsity, bytes/s, bytes."""
  bfloat16: float   # of matrix products; float16 on GPUs older than A100
  float32: float    # as XLA multiplies float32 by default: one bfloat16 pass on TPUs, TF32 on GPUs from A100 on
  bandwidth: float  # of its memory
  memory: float
  link: float       # bytes/s that it sends to other chips, all its links together, one direction


def _tpu(teraflops, bandwidth, memory, link):
  return Chip(teraflops * 1e12, teraflops * 1e12, bandwidth * 1e9, memory * 2 ** 30, link * 1e9)


def _gpu(half, single, bandwidth, memory, link):
  return Chip(half * 1e12, single * 1e12, bandwidth * 1e9, memory * 1e9, link * 1e9)


# By jax.Device.device_kind. TPUs: cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages v2 to v6e beside it (links of v2
# and v3: Jouppi et al. 2020, 'A domain-specific supercomputer for training deep neural networks', table 3); of v2 and v3 JAX shows
# the two cores of a chip as two devices. GPUs: NVIDIA's data sheets of each; NVLink where there is one, else PCI Express.
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
PEAKS |= {'TPU v5e': PEAKS['TPU v5 lite'], 'TPU v5p': PEAKS['TPU v5'], 'TPU v6e': PEAKS['TPU v6 lite']}  # as some versions call them


def peak(device, dtype):
  """The FLOP/s that a device can reach in matrix products of a type, or None where nobody knows (CPUs, chips not in PEAKS)."""
  chip = PEAKS.get(device.device_kind)
  return chip and (chip.bfloat16 if jnp.dtype(dtype).itemsize == 2 else chip.float32)


# ---- memory
def memory_available(device):
  """Bytes that a device lets programs have, or None where it does not say.

  Of the CPU: a share of what is available now, one for each device that is simulated on it.
  """
  stats = device.memory_stats() if device.platform != 'cpu' else None
  if stats:
    return stats.get('bytes_limit')
  if device.platform != 'cpu':
    return None
  return _available() // len([other for other in jax.local_devices() if other.platform == 'cpu'])


def _available():
  try:
    with open('/proc/meminfo') as lines:  # what could be had without swapping; sysconf counts only what lies idle
      return next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
  except (OSError, StopIteration):
    return os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def memory_needed(compiled):
  """Bytes that a compiled program needs on each device: arguments, results that take no argument's place, temporaries, code."""
  found = compiled.memory_analysis()
  return (found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes + found.temp_size_in_bytes
          + found.generated_code_size_in_bytes)


def exhausted(message):
  """(bytes that a program needs, bytes that a device has), where a compiler for TPUs says that it does not fit their memory.

  Args:
    message: of the error, the whole text.
  Returns:
    None where the error is about something else, such as the small memory beside a core (VMEM), which no setting of a run enlarges.
  """
  if 'RESOURCE_EXHAUSTED' not in message or 'hbm' not in message.lower():
    return None
  sizes = re.findall(r'([\d.]+)([KMGT])(?![\w.])', message)
  return tuple(float(number) * 1024 ** ('KMGT'.index(unit) + 1) for number, unit in sizes[:2]) if len(sizes) > 1 else None


RESERVE = .05      # share of a device's memory that an estimate leaves free
REMAT_KEEPS = .35  # of the activations with remat=True, an estimate: of about seven arrays that a block keeps its input stays


def advice(needed, there, batch, devices, fsdp, accumulate, remat, state_bytes):
  """What would make a train step fit, as a line of text; '' where it fits.

  What is not state is taken as activations: they shrink with the pictures that a device sees at once, the state with fsdp.

  Args:
    needed: bytes a device that the step needs (memory_needed).
    there: bytes a device that there are (memory_available).
    batch, devices, fsdp, accumulate, remat: as it was compiled; remat: whether blocks are rematerialised.
    state_bytes: of the state on one device, as it was compiled.
  """
  if needed <= there:
    return ''
  room, activations, now = there * (1 - RESERVE), needed - state_bytes, (accumulate, 1, fsdp)
  parts = [k for k in _doubled(accumulate, batch) if batch % (k * devices) == 0]
  shares = [n for n in _doubled(fsdp, devices) if devices % n == 0]
  estimate = lambda k, keeps, n: state_bytes * fsdp / n + activations * accumulate / k * keeps
  ways = [way for way in itertools.product(parts, (1,) if remat else (1, REMAT_KEEPS), shares) if estimate(*way) <= room]
  changes = lambda way: tuple(new != old for new, old in zip(way, now))
  fewest = min((sum(changes(way)) for way in ways), default=0)
  smallest = {changes(way): way for way in reversed(ways) if sum(changes(way)) == fewest}  # the least change of each kind
  options = [f'{_told(way, now)} (about {_gb(estimate(*way))})' for way in reversed(smallest.values())]
  smaller = int((room - state_bytes) / activations * batch) // (devices * accumulate) * devices * accumulate
  if smaller > 0:
    options.append(f'config.batch={smaller}, which is another training')
  need = f'the step needs {_gb(needed)} a device, of which {_gb(state_bytes)} are state, and there are {_gb(there)}'
  return f'{need}: ' + ('try ' + '; or '.join(options) if options else 'take more devices, devices with more memory, or a smaller network')


def _doubled(start, end):
  """start, 2 start, 4 start, .. up to end."""
  return [start << i for i in range(64) if start << i <= end]


def _told(way, now):
  words = (f'config.grad_accumulation={way[0]}', 'remat=True in config.net', f'config.fsdp={way[2]}')
  return ' with '.join(word for word, new, old in zip(words, way, now) if new != old)


def _gb(number):
  return f'{number / 1e9:.2f} GB'
