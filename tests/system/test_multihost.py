"""Several processes over loopback: how they meet, what they report if one is missing, and a complete run of two."""
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.system import multihost
from diffusion.system.checkpoint import open_checkpoints
from tests.conftest import COSINE, ROOT
from tests.training.test_devices import free_port

MEET = '''
import sys, time
from diffusion.system import consensus, multihost
from diffusion.errors import InputError
port, number, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
try:
  multihost.start(f'127.0.0.1:{port}', 3, number, seconds)
  print('together', multihost.is_main(), flush=True)
  if number == 2:
    time.sleep(12)  # late for the next meeting
  else:
    consensus.all_gather_text('lunch', 4)
except InputError as error:
  print(error, flush=True)
'''


def started(*arguments):
  return popen([sys.executable, *map(str, arguments)])


def popen(words, **options):
  return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def ended(processes, seconds=120):
  return [process.communicate(timeout=seconds)[0] for process in processes]


def test_processes_meet_and_each_is_told_who_does_not():
  port = free_port()
  texts = ended([started('-c', MEET, port, k, 60) for k in range(3)])
  assert [f'together {k == 0}' in text for k, text in enumerate(texts)] == [True] * 3, texts
  for text in texts[:2]:
    assert 'process 2 of 3 did not come within 4 s' in text, texts


def test_processes_that_do_not_come_are_named_to_all_that_did():
  port = free_port()
  for text in ended([started('-c', MEET, port, k, 3) for k in (0, 2)]):
    assert 'process 1 of 3 did not come within 3 s' in text and 'Traceback' not in text


def test_a_process_that_died_is_named_and_does_not_keep_the_others_waiting():
  code = '''
import os, sys, time
from diffusion.system import multihost
multihost.HEARTBEAT = 10
multihost.start(f'127.0.0.1:{sys.argv[1]}', 2, int(sys.argv[2]), 60)
os._exit(3) if sys.argv[2] == '1' else time.sleep(300)
'''
  port = free_port()
  two = [started('-c', code, port, k) for k in range(2)]
  assert re.search(r'stopped sending heartbeats\):\n1\n', ended(two)[0]) and two[0].returncode != 0


def test_a_coordinator_that_does_not_answer_is_named():
  port = free_port()
  before = time.monotonic()
  with pytest.raises(InputError, match=f'coordinator 127.0.0.1:{port} did not answer within 1 s'):
    multihost.rendezvous(('127.0.0.1', port), 2, 1, 1)
  assert time.monotonic() - before < 30  # beside other tests; alone it takes a few seconds


def test_two_processes_with_one_number_are_refused_by_process_0():
  port = free_port()
  others = [threading.Thread(target=say, args=(port, b'1'), daemon=True) for _ in range(2)]
  for other in others:
    other.start()
  with pytest.raises(InputError, match='--process=1'):
    multihost.rendezvous(('127.0.0.1', port), 3, 0, 60)
  for other in others:
    other.join(30)


def say(port, number):
  """Connects as another process does, once there is a listener, and waits for the answer."""
  until = time.monotonic() + 30
  while time.monotonic() < until:
    try:
      with socket.create_connection(('127.0.0.1', port), timeout=5) as connection:
        connection.sendall(number)
        return connection.recv(16)
    except ConnectionRefusedError:
      time.sleep(.05)
    except OSError:
      return None


@pytest.mark.parametrize('given, said', [
  (dict(coordinator='a:1'), '^--processes, --process must'),
  (dict(coordinator='here', processes=2, process=0), '--coordinator=here: .*HOST:PORT'),
  (dict(coordinator='a:1', processes=2, process=2), '--process=2 of --processes=2'),
])
def test_flags_that_do_not_fit_are_refused(given, said):
  with pytest.raises(InputError, match=said):
    multihost.start(**given)


@pytest.mark.parametrize('environment, several', [
  ({}, False), ({'SLURM_NTASKS': '4'}, False), ({'SLURM_STEP_NUM_TASKS': '4'}, True),
  ({'OMPI_COMM_WORLD_SIZE': '2'}, True),
  ({'TPU_WORKER_HOSTNAMES': 'localhost'}, False), ({'TPU_WORKER_HOSTNAMES': 'a,b'}, True),
])
def test_the_environment_tells_whether_there_are_others(environment, several):
  assert bool(multihost.expected(environment)) == several


@pytest.mark.skipif(sys.platform != 'linux', reason='Open MPI is played by its environment variables, on Linux')
def test_open_mpi_needs_no_flags():
  code = '''
from diffusion.system import multihost
multihost.start(seconds=60)
import jax
print('process', jax.process_index(), 'of', jax.process_count(), jax.device_count())
'''
  port = free_port()
  def one(k):  # what mpirun sets
    env = dict(os.environ, OMPI_MCA_orte_hnp_uri='1531576320.0;tcp://127.0.0.1:34911', JAX_COORDINATOR_PORT=str(port),
               OMPI_COMM_WORLD_SIZE='2', OMPI_COMM_WORLD_RANK=str(k), OMPI_COMM_WORLD_LOCAL_RANK=str(k), XLA_FLAGS='')
    return popen([sys.executable, '-c', code], env=env)
  for k, text in enumerate(ended([one(0), one(1)])):
    assert f'process {k} of 2 2' in text, text


def wait_for(path, processes):
  until = time.monotonic() + 240
  while not path.exists():
    assert time.monotonic() < until and all(process.poll() is None for process in processes), ended(processes)
    time.sleep(.1)


def test_two_processes_train_stop_together_at_sigterm_and_one_goes_on(command, tmp_path):
  run, port = tmp_path / 'run', free_port()
  settings = [COSINE, f'--workdir={run}', '--config.steps=100000', '--config.fsdp=2', '--config.sample_every=3',
              '--config.save_every=4',
              '--config.log_every=1', '--config.val_every=4', '--config.lr_schedule=constant(warmup=2)']
  address = f'--coordinator=127.0.0.1:{port}'
  two = [command(*settings, address, '--processes=2', f'--process={k}', start=True) for k in range(2)]
  wait_for(run / 'checkpoints' / '4', two)
  before = time.monotonic()
  two[1].send_signal(signal.SIGTERM)  # the one that writes nothing is told
  texts = ended(two)
  assert time.monotonic() - before < 30  # beside other tests; alone it takes a few seconds
  assert [process.returncode for process in two] == [0, 0], texts
  step = open_checkpoints(run / 'checkpoints').steps()[-1]
  assert f'at step {step}, which is saved' in texts[0] and '2 x 2 cpu (data x fsdp) of 2 processes' in texts[0]
  assert not any(word in texts[1] for word in ('saved', 'pictures', 'images'))  # only process 0 reports
  lines = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines] == list(range(1, step + 1))  # and one writes
  assert len(list((run / 'training').glob('*.png'))) == (step - 1) // 3  # none at the end

  # One process, with replicated parameters.
  done = command(COSINE, f'--workdir={run}', f'--config.steps={step + 2}', '--config.lr_schedule=constant(warmup=2)')
  assert done.returncode == 0 and f'steps {step} to {step + 2}' in done.stdout, done.stderr
  assert open_checkpoints(run / 'checkpoints').steps()[-1] == step + 2
  losses = np.array([json.loads(line)['loss'] for line in (run / 'metrics.jsonl').read_text().splitlines()])
  assert np.isfinite(losses).all() and losses[-1] < .8 * losses[0] and jax.process_count() == 1
