"""What a training will take, said before its first step: devices, parameters, operations, memory; and how well it uses them."""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets import setting
from diffusion.setup.choices import make
from diffusion.system import flops
from diffusion.training.loop import abstract_batch, abstract_state, make_train_step


def flops_per_image(run):
  """Model FLOPs of training on one picture: of the loss, and twice as much for its gradient (Kaplan et al., arXiv:2001.08361, 2.1)."""
  state, (batch, key) = abstract_state(run), abstract_batch(run)
  def value(params, batch, key, memory):
    x0, cond = run.task.encode(None, batch)
    return run.loss(key, params, x0, cond, False, *memory)[0]
  return 3 * flops.flops(value, state.params, batch, key, state.memory) / run.plan.batch


def bytes_of(tree):
  """Bytes that a tree of ShapeDtypeStructs with their places takes on each device."""
  return sum(int(np.prod(a.sharding.shard_shape(a.shape), dtype=np.int64)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def forecast(run, config):
  """Compiles the training step, and tells what it takes.

  Returns:
    (lines, usage, step): {label: text} to show; images per second -> the model FLOP utilisation to log, {} where the peak of the
    devices is not known; and the step of make_train_step.
  Raises:
    InputError: the compiler finds no room for it; the message says what would fit.
  """
  state, mesh = abstract_state(run), run.mesh
  device, net = mesh.local_devices[0], make('net', config.net, classes=0)
  step, there = make_train_step(run), flops.memory_there(device)
  advise = lambda needed, there: flops.advice(needed, there, run.plan.batch, mesh.size, config.fsdp, config.accumulate,
                                              bool(setting(net, 'remat')), bytes_of(state))
  try:
    needed = flops.memory_needed(step.lower(state, *abstract_batch(run)).compile())
  except jax.errors.JaxRuntimeError as error:
    if not flops.exhausted(str(error)):
      raise
    raise InputError(advise(*flops.exhausted(str(error)))) from error
  each, number = flops_per_image(run), sum(a.size for a in jax.tree.leaves(state.params))
  shape = f'{mesh.shape["data"]} x {mesh.shape["fsdp"]}' if mesh.shape['fsdp'] > 1 else str(mesh.size)
  hosts = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
  parts = f' in {config.accumulate} parts' if config.accumulate > 1 else ''
  lines = dict(
    devices=f'{shape} {device.device_kind}{" (data x fsdp)" if mesh.shape["fsdp"] > 1 else ""}{hosts}, '
            f'{run.plan.batch // mesh.size} pictures of each batch on each{parts}',
    network=f'{number / 1e6:.2f} million parameters, {each / 1e9:.3g} GFLOP to train on a picture',
    memory=f'{needed / 1e9:.2f} GB a device, {bytes_of(state) / 1e9:.2f} of it state' + (f'; {there / 1e9:.2f} GB are there' if there else ''))
  if there and needed > there:
    lines['will not fit'] = advise(needed, there)
  peak = flops.peak(device, jnp.dtype(setting(net, 'dtype')))
  if peak:  # elsewhere the first seconds of training tell
    hours = run.plan.steps * run.plan.batch * each / (peak * mesh.size) / 3600
    lines['time'] = f'at least {hours:.1f} h for {run.plan.steps:,} steps: that is the devices at their peak'
  return lines, lambda rate: {'flop_utilisation': rate * each / (peak * mesh.size)} if peak else {}, step
