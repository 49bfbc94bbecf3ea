"""What a training run will need: devices, parameters, FLOPs, memory; and how well it uses them."""
from concurrent import futures

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.nets import setting
from diffusion.setup.choices import make
from diffusion.system import flops
from diffusion.setup.build import Weights
from diffusion.setup.optimizer import merged
from diffusion.training.heldout import heldout_measurement
from diffusion.training.loop import abstract_inputs, make_train_step
from diffusion.training.state import abstract_state


def flops_per_image(run, state, batch, key, frozen):
  """Model FLOPs of training on one image: the loss, and twice as many for its gradient.

  Kaplan et al., arXiv:2001.08361, section 2.1.

  Args:
    run: the Experiment.
    state, batch, key, frozen: what the train step takes, or their shapes.
  """
  def value(weights, batch, key):
    x0, cond = run.encode(weights.frozen, None, batch)
    return heldout_measurement(run, weights, key, x0, cond)[0]
  weights = Weights(merged(state.params, state.base), state.memory, frozen)
  return 3 * flops.flops(value, weights, batch, key) / run.plan.batch


def bytes_of(tree):
  """Bytes on each device of a tree of ShapeDtypeStructs with shardings."""
  elements = lambda a: int(np.prod(a.sharding.shard_shape(a.shape), dtype=np.int64))
  return sum(elements(a) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def forecast(run, config, data):
  """Compiles the training step and reports what it needs.

  Args:
    run: the Experiment.
    config: its config.
    data: the Dataset to train on.
  Returns:
    (lines, usage, step): {label: text} to show; a function images per second -> {'flop_utilisation': model FLOPs over
      the devices' peak}, {} if that is unknown; make_train_step(run), compiled.
  Raises:
    InputError: the compiler finds that it does not fit into memory; the message says what would.
  """
  state, (batch, key, frozen) = abstract_state(run), abstract_inputs(run, data)
  device, net = run.mesh.local_devices[0], make('net', config.net, classes=0)
  advise = lambda needed, available: flops.advice(
    needed, available, run.plan.batch, run.mesh.size, config.fsdp, config.grad_accumulation,
    bool(setting(net, 'remat')), bytes_of((state, frozen)))
  step = make_train_step(run, state)
  lowered = step.lower(state, batch, key, frozen=frozen, steps=np.int32(run.plan.steps))
  try:
    compiled, each = _beside(lowered.compile, lambda: flops_per_image(run, state, batch, key, frozen))
    needed = flops.memory_needed(compiled)
  except jax.errors.JaxRuntimeError as error:
    if not flops.exhausted(str(error)):
      raise
    raise InputError(advise(*flops.exhausted(str(error)))) from error
  parameters = sum(a.size for a in jax.tree.leaves((state.params, state.base)))
  lines = dict(devices=_devices(run, config.grad_accumulation),
               network=f'{parameters / 1e6:.2f} million parameters, {each / 1e9:.3g} GFLOP to train on an image')
  available = flops.memory_available(device)
  lines |= _memory(needed, bytes_of((state, frozen)), available)
  if available and needed > available:
    lines['will not fit'] = advise(needed, available)
  peak = flops.peak(device, jnp.dtype(setting(net, 'dtype')))
  if not peak:  # then the first seconds of training tell
    return lines, lambda rate: {}, step
  hours = run.plan.steps * run.plan.batch * each / (peak * run.mesh.size) / 3600
  lines['time'] = f'at least {hours:.1f} h for {run.plan.steps:,} steps, with the devices at their peak'
  return lines, lambda rate: {'flop_utilisation': rate * each / (peak * run.mesh.size)}, step


def _beside(first, second):
  """The results of two functions, the first in a thread: the compiler needs no Python, and counting does."""
  with futures.ThreadPoolExecutor(1) as pool:
    running = pool.submit(first)
    found = second()
    return running.result(), found


def _devices(run, accumulate):
  mesh, kind = run.mesh, run.mesh.local_devices[0].device_kind
  sharded = mesh.shape['fsdp'] > 1
  layout = f'{mesh.shape["data"]} x {mesh.shape["fsdp"]} {kind} (data x fsdp)' if sharded else f'{mesh.size} {kind}'
  processes = f' of {jax.process_count()} processes' if jax.process_count() > 1 else ''
  parts = f' in {accumulate} parts' if accumulate > 1 else ''
  return f'{layout}{processes}, {run.plan.batch // mesh.size} images per device{parts}'


def _memory(needed, state, available):
  text = f'{needed / 1e9:.2f} GB per device, {state / 1e9:.2f} of it state'
  return dict(memory=text + (f'; {available / 1e9:.2f} GB available' if available else ''))
