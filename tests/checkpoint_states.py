"""States for tests of checkpoints, every bit of which is determined by the step."""
import os
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffusion.system import checkpoint_reading, checkpoint_writing


class State(NamedTuple):
  step: Any
  params: Any
  opt: Any
  key: Any


def state_at(step):
  """Noise, because damage is less visible in data that compress well."""
  rng = np.random.default_rng(step)
  params = {'conv_in': {'kernel': jnp.asarray(rng.normal(size=(3, 3, 4, 64)), jnp.float32)},
            'scale': jnp.asarray(rng.normal(size=5), jnp.bfloat16)}
  key = jax.random.key_data(jax.random.key(step))
  return State(jnp.int32(step), params, optax.adamw(1e-3).init(params), key)


def mixed():
  """A state with arrays that can be sharded over 8 devices along one of their dimensions, and others."""
  rng = np.random.default_rng(3)
  sizes = dict(wide=(5, 16), tall=(24, 3), uneven=(7, 5), vector=(8,))
  arrays = {name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in sizes.items()}
  return {'state': state_at(1)} | arrays


def abstract(tree):
  def struct(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.Array) else x
  return jax.tree.map(struct, tree)


def same_bits(a, b):
  def same(x, y):
    a, b = np.asarray(x), np.asarray(y)
    return type(x) is type(y) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
  return jax.tree.structure(a) == jax.tree.structure(b) and jax.tree.all(jax.tree.map(same, a, b))


def python(code, *args, devices=1):
  """(command, environment) of a Python process with simulated devices."""
  # NPROC: with fewer threads than devices a simulated collective can stop the process.
  flags = f'--xla_force_host_platform_device_count={devices}'
  environment = {**os.environ, 'XLA_FLAGS': flags, 'NPROC': '16', 'JAX_PLATFORMS': 'cpu'}
  return [sys.executable, '-c', code, *map(str, args)], environment


def said(caplog):
  """Our own log messages, without the tracebacks of orbax's threads, which `quiet_orbax` suppresses in programs."""
  ours = checkpoint_reading.__file__, checkpoint_writing.__file__
  return [record.getMessage() for record in caplog.records if record.pathname in ours]
