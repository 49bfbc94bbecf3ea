"""Flags are set if every XLA knows them, and sums that XLA's CPU compiler gets wrong come out right."""
import os
import subprocess
import sys

import pytest

from diffusion.system import xla_flags

# jax issue 39103, of jaxlib 0.10.2: (A x)^2 summed over each of many rows.
PRODUCTS = '''
import jax, jax.numpy as jnp, numpy as np
i = np.arange(32769, dtype=np.float32)
x = np.stack([i, 0 * i, 0 * i], 1)
got = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
print(float(np.max(np.abs(got - i.astype(np.float64) ** 2) / (i + 1.) ** 2)))
'''
# Of jaxlib 0.11.2 and 0.12.0: the sum over 8 copies of .3 r comes out as if it were r.
TWICE = '''
import jax, jax.numpy as jnp, numpy as np

@jax.jit
def rows(x, r):
  v = jnp.full_like(x, .3) * r
  return jnp.sum(v + x * jnp.exp(-v), 1)

r = np.linspace(.5, 1.5, 8192, dtype=np.float32)[:, None]
print(float(np.max(np.abs(rows(np.zeros((8192, 8), np.float32), r) - 8 * .3 * r[:, 0]))))
'''
# The same in the bound of a chain, with a network that predicts 0 and a learned variance of .3, against NumPy.
BOUND = '''
import jax, jax.numpy as jnp, numpy as np
from diffusion.core import likelihood, schedules
from diffusion.core.gaussian import Pred
from diffusion.evaluation.elbo import bound
from diffusion.samplers import sample_keys

table, n = schedules.cosine(4), 8192
denoise = lambda x, noise: Pred(jnp.zeros_like(x), x, jnp.full_like(x, .3))
keys = sample_keys(0, np.arange(n))
found = jax.jit(lambda x0: bound(keys, denoise, table, x0, variance='learned'))(jnp.full((n, 8), .5))[0]['diffusion']
steps = likelihood.reverse(table)
v = .3 * steps.log_ratio[1:]
print(float(np.max(np.abs(found - np.sum(v + np.expm1(-v) + steps.gain[1:] * .5 ** 2 * np.exp(-v)) / 2 / np.log(2)))))
'''


def run(program, **variables):
  """The process that ran a program, without the flags of this one."""
  clean = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  return subprocess.run([sys.executable, '-c', program], env=clean | variables, capture_output=True, text=True)


START = 'from diffusion.system import platform\nplatform.start()\n'
ALWAYS = 'from diffusion.system import xla_flags\nxla_flags.add(*xla_flags.RIGHT_SUMS)\n'


@pytest.mark.parametrize('start, program', [(ALWAYS, PRODUCTS), (START, TWICE)], ids=['products', 'twice'])
def test_with_the_flag_sums_are_right(start, program, tmp_path):
  done = run(start + program, DIFFUSION_CACHE=str(tmp_path))
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) < 1e-5


def test_the_bound_is_right_without_any_flag_too():
  done = run(BOUND)
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) < 1e-4


FLAGS = [('xla_backend_optimization_level', '0'), ('xla_cpu_use_fusion_emitters', 'false'), xla_flags.RIGHT_SUMS,
         ('xla_cpu_no_such_flag', 'true')]


@pytest.mark.parametrize('flag, value', FLAGS, ids=lambda text: text.strip('-'))
def test_a_flag_is_known_where_xla_takes_it(flag, value):
  done = run('import jax; jax.devices()', XLA_FLAGS=f'--{flag}={value}')
  assert xla_flags.known(flag) == (done.returncode == 0), done.stderr
  assert done.returncode == 0 or 'Unknown flag' in done.stderr, done.stderr


def test_only_known_flags_are_added_and_those_of_the_user_stay(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=1')
  xla_flags.add('xla_backend_optimization_level', 0)
  xla_flags.add('xla_cpu_no_such_flag', 'true')
  xla_flags.add(*xla_flags.RIGHT_SUMS)
  assert os.environ['XLA_FLAGS'] == '--xla_backend_optimization_level=1 --xla_cpu_experimental_ynn_fusion_type=-reduce'
