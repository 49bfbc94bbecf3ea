"""Start-up settings, each tried in a process of its own."""
import json
import os
import subprocess
import sys

SHOW = '''
import json, os
from diffusion.system import platform
for _ in range(2):
  platform.start({devices})
import jax
cache = jax.config.jax_compilation_cache_dir
print(json.dumps(dict(devices=len(jax.devices()), flags=os.environ['XLA_FLAGS'], cache=cache,
                      threads=os.environ['NPROC'])))
platform.start()
'''


def started(devices, **variables):
  """What a fresh process ends up with after platform.start(devices), called twice."""
  mine = ('XLA_FLAGS', 'NPROC', 'JAX_COMPILATION_CACHE_DIR')
  clean = {name: value for name, value in os.environ.items() if name not in mine}
  env = {**clean, 'JAX_PLATFORMS': 'cpu', **variables}
  command = [sys.executable, '-c', SHOW.format(devices=devices)]
  run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
  return json.loads(run.stdout)


def test_start_makes_the_devices_asked_for_and_a_cache_where_the_user_wants_it(tmp_path):
  got = started(3, DIFFUSION_CACHE=str(tmp_path))
  assert got['devices'] == 3 and got['flags'].count('device_count') == 1
  assert got['cache'] == str(tmp_path / 'programs')


def test_what_the_user_has_set_stays(tmp_path):
  mine = '--xla_force_host_platform_device_count=5'
  got = started(None, XLA_FLAGS=mine, JAX_COMPILATION_CACHE_DIR=str(tmp_path))
  assert got['devices'] == 5 and got['flags'].startswith(mine)
  assert int(got['threads']) >= 10  # of two programs, each with a collective of five devices
  assert got['cache'] == str(tmp_path)
