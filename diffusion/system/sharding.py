"""Devices: one mesh ('data', 'fsdp'), and how arrays are sharded on it. No other module names an axis.

The batch is split over both axes. The parameters, the optimizer state and the averages are sharded over 'fsdp', each
array along one of its dimensions: a device holds its shard, and the compiler gathers a kernel where it is used.
"""
import jax
from jax.experimental import multihost_utils
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion.errors import InputError


def make_mesh(fsdp=1, devices=None):
  """A mesh ('data', 'fsdp') of all devices of all processes, with Auto axes: the compiler chooses the communication.

  Args:
    fsdp: number of devices that share one copy of the parameters; consecutive in the order of jax.
    devices: to use instead of all.
  Raises:
    InputError: fsdp does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    divisors = [str(n) for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    raise InputError(f'config.fsdp={fsdp} does not divide the {len(devices)} devices; use {" or ".join(divisors)}')
  grid = np.asarray(devices).reshape(-1, fsdp)
  return jax.sharding.Mesh(grid, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def local_mesh(mesh):
  """A mesh of this process' devices alone, for what each process computes by itself."""
  return mesh if jax.process_count() == 1 else make_mesh(devices=mesh.local_devices)


def fetch(tree):
  """A tree as complete host arrays, however it is sharded. Every process calls it."""
  def one(a):
    if isinstance(a, jax.Array) and not a.is_fully_addressable:
      return multihost_utils.process_allgather(a, tiled=True)
    return jax.device_get(a)
  return jax.tree.map(one, tree)


def batch_sharding(mesh):
  """The leading axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh):
  """A full copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def by_shape(mesh, tree):
  """The sharding of a tree of parameters (arrays or ShapeDtypeStructs): a NamedSharding for each.

  Kernels and matrices are sharded over 'fsdp' along their largest divisible dimension, the last of equal ones.
  Vectors, less than a hundredth of the total, are replicated: their sharding would propagate to the activations.
  """
  parts = mesh.shape['fsdp']
  def place(a):
    divisible = [axis for axis, size in enumerate(a.shape) if size % parts == 0]
    if not divisible or len(a.shape) < 2 or parts == 1:
      return replicated(mesh)
    chosen = max(divisible, key=lambda axis: (a.shape[axis], axis))
    return NamedSharding(mesh, PartitionSpec(*['fsdp' if axis == chosen else None for axis in range(len(a.shape))]))
  return jax.tree.map(place, tree)


def constrain(mesh):
  """A function that keeps activations [B, ...] sharded by batch, so that the compiler gathers parameters instead.

  It leaves a batch that does not divide evenly as it is.
  """
  def apply(x):
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh)) if x.shape[0] % mesh.size == 0 else x
  return apply


def gather_params(net, mesh):
  """net(params, ...) for parameters sharded over 'fsdp': each is gathered once, and its gradient sharded again."""
  if mesh.shape['fsdp'] == 1:
    return net
  gathered = lambda params: jax.lax.with_sharding_constraint(params, replicated(mesh))
  return lambda params, *args, **kwargs: net(gathered(params), *args, **kwargs)


def put(tree, places):
  """Puts host arrays, complete in every process, onto the devices; no device ever holds more than its shard."""
  def one(a, place):
    a = np.asarray(a)
    return jax.make_array_from_callback(a.shape, place, lambda index: a[index])
  return jax.tree.map(one, tree, places)


def put_batch(batch, mesh):
  """Puts host arrays [B, ...], complete in every process, onto the devices, split by batch."""
  return jax.tree.map(lambda a: put(a, batch_sharding(mesh)), batch)


def local_rows(mesh, size):
  """The rows of a batch of `size` that this process holds: int [n], ascending."""
  places = batch_sharding(mesh).addressable_devices_indices_map((size,))
  return np.unique(np.concatenate([np.arange(size)[index] for index in places.values()]))


def put_rows(rows, mesh, size):
  """The global arrays [size, ...] of a batch, of which each process gives its own rows (see local_rows)."""
  one = lambda a: jax.make_array_from_process_local_data(batch_sharding(mesh), a, (size, *a.shape[1:]))
  return jax.tree.map(one, rows)


def check_batch(name, size, mesh, accumulate=1):
  """Raises InputError, starting with `name`, unless `size` examples split evenly over devices and micro-batches."""
  unit = mesh.size * accumulate
  if size < 1 or size % unit:
    nearest = max(unit, round(size / unit) * unit)
    parts = f' in config.grad_accumulation={accumulate} parts' if accumulate > 1 else ''
    raise InputError(f'{name}={size} does not divide over {mesh.size} devices{parts}; '
                     f'use a multiple of {unit} such as {nearest}')
