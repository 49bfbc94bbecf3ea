"""Devices: one mesh, and how arrays lie on it. The mathematics elsewhere names no axis."""
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from diffusion.errors import InputError


def make_mesh(devices=None):
  """A mesh ('data', 'fsdp') of all devices, all of them on 'data'. Auto axes: the compiler moves data where it must."""
  if jax.process_count() > 1:
    raise InputError('several processes are not supported yet: run one process with all its devices')
  devices = jax.devices() if devices is None else devices
  return jax.make_mesh((len(devices), 1), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices)


def batched(mesh):
  """The leading axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def replicated(mesh):
  return NamedSharding(mesh, PartitionSpec())


def constrain(mesh):
  """Keeps activations split by batch at block boundaries, so that the compiler never gathers them; leaves alone a batch that
  does not divide."""
  def apply(x):
    return jax.lax.with_sharding_constraint(x, batched(mesh)) if x.shape[0] % mesh.size == 0 else x
  return apply


def put_batch(batch, mesh):
  """Host arrays [B, ...] onto the devices, split by batch."""
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(batched(mesh), np.asarray(a)), batch)


def check_batch(name, size, mesh):
  """Raises InputError where `size` examples do not split evenly over the devices."""
  if size < 1 or size % mesh.size:
    near = max(mesh.size, round(size / mesh.size) * mesh.size)
    raise InputError(f'{name}={size} does not divide over {mesh.size} devices; use a multiple of {mesh.size} such as {near}')
