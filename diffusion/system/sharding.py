"""Devices: one mesh ('data', 'fsdp'), and how arrays lie on it. The mathematics elsewhere names no axis.

The batch is split over both axes. Over 'fsdp' the parameters, the optimizer's state and the averages are divided too, each array
along one of its dimensions: a device holds its part, and the compiler gathers a kernel where it is used.
"""
import jax
from jax.experimental import multihost_utils
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion.errors import InputError


def make_mesh(fsdp=1, devices=None):
  """A mesh ('data', 'fsdp') of all devices of all processes. Auto axes: the compiler moves data where it must.

  Args:
    fsdp: devices that share one copy of the parameters, neighbours in the order of jax.
    devices: instead of all.
  Raises:
    InputError: fsdp does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    fits = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
    raise InputError(f'config.fsdp={fsdp} does not divide the {len(devices)} devices; use {" or ".join(map(str, fits))}')
  grid = np.asarray(devices).reshape(-1, fsdp)
  return jax.sharding.Mesh(grid, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)


def local_mesh(mesh):
  """The mesh of this process' devices alone, for what each process works out for itself."""
  return mesh if jax.process_count() == 1 else make_mesh(devices=mesh.local_devices)


def fetch(tree):
  """Host arrays of a tree, wherever its parts lie: every process calls it, and gets the whole."""
  far = lambda a: isinstance(a, jax.Array) and not a.is_fully_addressable
  return jax.tree.map(lambda a: multihost_utils.process_allgather(a, tiled=True) if far(a) else jax.device_get(a), tree)


def batch_sharding(mesh):
  """The leading axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def by_shape(mesh, tree):
  """How a tree of parameters (arrays or ShapeDtypeStructs) lies on the mesh: a NamedSharding for each.

  Kernels and matrices are divided over 'fsdp' along the largest dimension that divides, the last of equal ones. Vectors, less than a
  hundredth of the whole, stay whole: their division would spread to the activations.
  """
  parts = mesh.shape['fsdp']
  def place(a):
    fits = [axis for axis, size in enumerate(a.shape) if size % parts == 0] if len(a.shape) > 1 and parts > 1 else []
    axis = max(fits, key=lambda axis: (a.shape[axis], axis), default=None)
    return NamedSharding(mesh, PartitionSpec(*['fsdp' if i == axis else None for i in range(len(a.shape))]) if fits else PartitionSpec())
  return jax.tree.map(place, tree)


def constrain(mesh):
  """Keeps activations split by batch at block boundaries, so that the compiler gathers parameters and not them; leaves alone a
  batch that does not divide."""
  def apply(x):
    return jax.lax.with_sharding_constraint(x, batch_sharding(mesh)) if x.shape[0] % mesh.size == 0 else x
  return apply


def gather_params(net, mesh):
  """net(params, ...) of parameters that are divided over 'fsdp': each is gathered for its use, once; of its summed gradient a device
  keeps its part."""
  if mesh.shape['fsdp'] == 1:
    return net
  return lambda params, *args, **kwargs: net(jax.lax.with_sharding_constraint(params, replicated(mesh)), *args, **kwargs)


def put(tree, places):
  """Host arrays, which every process has whole, onto the devices; no device ever holds more than its part."""
  def one(a, place):
    a = np.asarray(a)
    return jax.make_array_from_callback(a.shape, place, lambda index: a[index])
  return jax.tree.map(one, tree, places)


def put_batch(batch, mesh):
  """Host arrays [B, ...], which every process has whole, onto the devices, split by batch."""
  return jax.tree.map(lambda a: put(a, batch_sharding(mesh)), batch)


def local_rows(mesh, size):
  """Which rows of a batch of `size` this process holds: int [size of its share]."""
  places = batch_sharding(mesh).addressable_devices_indices_map((size,))
  return np.unique(np.concatenate([np.arange(size)[index] for index in places.values()]))


def put_rows(rows, mesh, size):
  """A process' own rows of a batch of `size` (see local_rows) onto its devices: the global arrays [size, ...]."""
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(batch_sharding(mesh), a, (size, *a.shape[1:])), rows)


def check_batch(name, size, mesh, accumulate=1):
  """Raises InputError where `size` examples do not split evenly over the devices, in `accumulate` parts."""
  unit = mesh.size * accumulate
  if size < 1 or size % unit:
    near = max(unit, round(size / unit) * unit)
    parts = f' in config.grad_accumulation={accumulate} parts' if accumulate > 1 else ''
    raise InputError(f'{name}={size} does not divide over {mesh.size} devices{parts}; use a multiple of {unit} such as {near}')
