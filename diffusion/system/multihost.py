"""Several processes, one per host: how they find each other, which one writes, and which one is missing.

On TPU pods, and under SLURM and Open MPI, the environment says where the others are; elsewhere three flags do. Every
process runs the same program with the same config. Process 0 alone writes images, logs and messages; all of them write
checkpoints.
"""
import contextlib
import os
import socket
import time

from diffusion.errors import InputError
from diffusion.system import jax_internals

WAIT = 300  # seconds to wait for the other hosts at the start
HEARTBEAT = 100  # seconds until jax notices that a process has died, and ends the others
FLAGS = '--coordinator=HOST:PORT of process 0, --processes=their number, --process=this one, from 0'


def expected(environment=os.environ):
  """Whether the environment says that this process is one of several: of srun, of mpirun, or on a multi-host TPU."""
  several = lambda name: environment.get(name, '').isdecimal() and int(environment[name]) > 1
  return (several('SLURM_STEP_NUM_TASKS') or several('OMPI_COMM_WORLD_SIZE')
          or ',' in environment.get('TPU_WORKER_HOSTNAMES', '') or 'MEGASCALE_COORDINATOR_ADDRESS' in environment)


def _on_a_pod():
  """Whether this is a TPU VM of a pod, according to a service of the machine rather than the environment."""
  return os.environ.get('JAX_PLATFORMS') != 'cpu' and jax_internals.on_a_pod()


def start(coordinator=None, processes=None, process=None, seconds=WAIT):
  """Joins the other processes, if there are any. Call it before jax initialises its devices.

  Args:
    coordinator: 'host:port' of process 0; None: from the environment, see `expected`.
    processes, process: the number of processes, and the index of this one, from 0.
    seconds: how long to wait for the others.
  Raises:
    InputError: inconsistent flags, a coordinator that does not answer, processes that are missing or cannot join.
  """
  flags = dict(coordinator=coordinator, processes=processes, process=process)
  missing = [f'--{name}' for name, value in flags.items() if value is None]
  if 0 < len(missing) < 3:
    raise InputError(f'{", ".join(missing)} must be given too: {FLAGS}')
  if missing and not expected() and not _on_a_pod():
    return
  import jax
  local = None
  if missing:
    coordinator, processes, process, local = _from_environment(seconds)
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise InputError(f'--coordinator={coordinator}: expected HOST:PORT, such as 10.0.0.1:8476')
  if processes < 1 or not 0 <= process < processes:
    raise InputError(f'--process={process} of --processes={processes}: expected a number from 0 to {processes - 1}')
  rendezvous((host.strip('[]'), int(port)), processes, process, seconds)
  jax.config.update('jax_enable_preemption_service', False)  # it would intercept SIGTERM
  try:
    jax.distributed.initialize(coordinator, processes, process, local, initialization_timeout=seconds,
                               heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=60)
    jax.devices()  # in all processes now, since each waits for the devices of the others
  except RuntimeError as error:
    raise InputError(f'cannot join the other processes: {" ".join(str(error).split())[:300]}') from error


def _from_environment(seconds):
  """(coordinator, processes, process, local devices or None), as jax detects a cluster."""
  coordinator, processes, process, local = jax_internals.cluster(seconds)
  tasks = os.environ.get('SLURM_STEP_TASKS_PER_NODE', os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', ''))
  if tasks.partition('(')[0] == '1':
    local = None  # jax would use one device; a process that is alone on its host uses them all
  if None in (coordinator, processes, process):
    raise InputError('the environment says that there are several processes, but not where process 0 is: give '
                     f'{FLAGS}; or run one process, outside of srun and mpirun')
  return coordinator, processes, process, local


def rendezvous(address, processes, process, seconds):
  """Returns once all processes are present; otherwise raises an InputError in each that names the missing ones.

  If one is missing, jax would end the process with a stack trace that does not name it. Process 0 listens on the port
  that jax's service uses afterwards; the others send their numbers, and receive those that are missing.
  """
  deadline = time.monotonic() + seconds
  if process:
    missing = _report_to(address, process, deadline, seconds)
  else:
    missing = _collect(address[1], processes, deadline)
  if missing:
    raise InputError(f'process {missing} of {processes} did not come within {seconds} s: check that its host is up, '
                     'and start all processes together')


def _collect(port, processes, deadline):
  """In process 0: the numbers of the missing processes, such as '1, 3', which it also sends to the others."""
  present = {}
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(socket.create_server(('', port)))
    except OSError as error:
      raise InputError(f'port {port} cannot be used on this host ({error.strerror}): give another one in '
                       '--coordinator, on all hosts') from error
    while len(present) < processes - 1 and time.monotonic() < deadline:
      server.settimeout(max(.01, deadline - time.monotonic()))
      number = None
      with contextlib.suppress(OSError, ValueError):
        connection = stack.enter_context(server.accept()[0])
        connection.settimeout(5)
        number = int(connection.recv(16))
      if number in present:
        raise InputError(f'two processes were started with --process={number}: give each its own number')
      if number and 0 < number < processes:
        present[number] = connection
    missing = ', '.join(str(k) for k in range(1, processes) if k not in present)
    for connection in present.values():
      with contextlib.suppress(OSError):
        connection.sendall(f'late {missing}'.encode())
  return missing


def _report_to(address, process, deadline, seconds):
  """In any other process: the same numbers, as received from process 0."""
  while True:
    problem = 'another program listens on that port'
    try:
      with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(str(process).encode())
        connection.settimeout(max(1., deadline - time.monotonic() + 5))
        answer = connection.recv(4096)
        if answer.startswith(b'late'):
          return answer.decode().removeprefix('late').strip()
    except OSError as error:
      problem = error
    if time.monotonic() > deadline:
      raise InputError(f'the coordinator {address[0]}:{address[1]} did not answer within {seconds} s ({problem}): '
                       'start process 0 there, and check that this host can reach its port')
    time.sleep(.2)


def process_index():
  """Which of the processes this one is, from 0; a process that is alone need not have started jax for it."""
  import jax
  return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main():
  """Whether this process is the one that writes."""
  import jax
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def is_only():
  """Whether this is the only process."""
  import jax
  return not jax.distributed.is_initialized() or jax.process_count() == 1
