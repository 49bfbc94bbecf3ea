"""Each private part of jax that we use exists and does what we expect; a failure names the part."""
import ast
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from diffusion.system import jax_internals

ROOT = Path(__file__).parents[2]

BACKENDS = '''
from diffusion.system import jax_internals
before = jax_internals.backends_started()
import jax
jax.devices()
result = [before, jax_internals.backends_started()]
'''
CLIENT = '''
import jax
from diffusion.system import jax_internals
before = jax_internals.coordination_client()
jax.distributed.initialize('127.0.0.1:{port}', 1, 0)
client = jax_internals.coordination_client()
client.key_value_set('folder/a', 'one')
client.key_value_set('folder/b', 'two')
client.wait_at_barrier('all', 5000)
client.key_value_delete('folder/a')
result = [before, client.key_value_dir_get('folder')]
'''
POD = '''
import os
from jax._src.clusters import cloud_tpu_cluster as tpu
from diffusion.system import jax_internals
found = [jax_internals.on_a_pod()]
os.environ.pop('TPU_SKIP_MDS_QUERY', None)  # jax sets it on import where there is no TPU
tpu.running_in_cloud_tpu_vm = True  # and two workers, as the metadata of the machine would say
tpu.get_metadata = lambda key: ('0' if 'number' in key else 'unknown:unknown:10.0.0.1,unknown:unknown:10.0.0.2', 200)
result = found + [jax_internals.on_a_pod()]
'''
CLUSTER = '''
from diffusion.system import jax_internals
result = jax_internals.cluster(5)
'''
OPEN_MPI = dict(OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://10.0.0.1:34911', OMPI_COMM_WORLD_SIZE='4',
                OMPI_COMM_WORLD_RANK='2', OMPI_COMM_WORLD_LOCAL_RANK='1')


def result(program, private, ours, **variables):
  """The `result` of a program, run in its own process; a failure names the private part and our code that needs it."""
  words = [sys.executable, '-c', f'{program}\nimport json\nprint(json.dumps(result))']
  done = subprocess.run(words, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True)
  if done.returncode:
    why = (done.stderr.strip().splitlines() or ['no message'])[-1]
    pytest.fail(f'jax {jax.__version__} has changed {private}, on which {ours} depends: {why}', pytrace=False)
  return json.loads(done.stdout.splitlines()[-1])


def test_whether_jax_has_started():
  found = result(BACKENDS, 'jax._src.xla_bridge.backends_are_initialized',
                 'tests/forks.py (forks of a process with jax imported)')
  assert found == [False, True]


def test_the_client_of_the_service_of_processes():
  with socket.create_server(('127.0.0.1', 0)) as free:
    port = free.getsockname()[1]
  before, found = result(CLIENT.format(port=port), 'jax._src.distributed.global_state.client or a method of it',
                         'agreement of several processes (consensus.all_gather_text)')
  assert before is None and [value for _, value in found] == ['two'] and found[0][0].endswith('folder/b')


def test_whether_this_is_a_pod():
  found = result(POD, 'jax._src.clusters.cloud_tpu_cluster', 'finding the other hosts of a TPU pod (multihost.start)',
                 JAX_PLATFORMS='cpu')
  assert found == [False, True]


def test_what_the_environment_says_of_a_cluster():
  clean = {name: '' for name in os.environ if name.startswith('SLURM_')}
  coordinator, processes, process, local = result(
    CLUSTER, 'jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params',
    'finding the other hosts under SLURM, Open MPI and on TPUs (multihost.start)', **clean, **OPEN_MPI)
  assert coordinator.startswith('10.0.0.1:') and (processes, process) == (4, 2) and local == [1]


def test_nothing_else_imports_what_is_private():
  """In the whole repository, with tests and experiments: what a module needs gets a function in jax_internals."""
  def names(node):
    if isinstance(node, ast.ImportFrom):
      return [f'{node.module}.{alias.name}' for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
  for folder in ('diffusion', 'experiments', 'tests', 'configs'):
    for path in (ROOT / folder).rglob('*.py'):
      if path.name != 'jax_internals.py':
        for node in ast.walk(ast.parse(path.read_text())):
          private = [name for name in names(node) if name.startswith('jax._') or name.startswith('jaxlib.')]
          assert not private, f'{path.relative_to(ROOT)} imports {private[0]}'
