"""Several processes, one a host: how they find each other, who writes, and who is missing.

On TPU pods, and under SLURM and Open MPI, the environment tells where the others are; elsewhere three flags do. Every process runs the
same program on the same config; process 0 alone writes pictures, logs and messages, all of them write checkpoints.
"""
import contextlib
import os
import socket
import time

from diffusion.errors import InputError
from diffusion.system import jax_internals

WAIT = 300  # seconds until a host that has not come is missed
HEARTBEAT = 100  # seconds until one that died is noticed, and jax ends the others


def expected(environment=os.environ):
  """Whether the environment says that this process is one of several: of srun, of mpirun, or on a TPU slice of several hosts."""
  several = lambda name: environment.get(name, '').isdigit() and int(environment[name]) > 1
  names = environment.get('TPU_WORKER_HOSTNAMES', '')
  return several('SLURM_STEP_NUM_TASKS') or several('OMPI_COMM_WORLD_SIZE') or ',' in names or 'MEGASCALE_COORDINATOR_ADDRESS' in environment


def _on_a_pod():
  """Whether this is a TPU VM of a pod, of which not the environment tells but a service of the machine (by jax's knowledge)."""
  return os.environ.get('JAX_PLATFORMS') != 'cpu' and jax_internals.on_a_pod()


def start(coordinator=None, processes=None, process=None, seconds=WAIT):
  """Joins the other processes; does nothing where there are none. Call it before jax has looked for devices.

  Args:
    coordinator: 'host:port' of process 0; None: as the environment says, see `expected`.
    processes, process: how many there are, and which one this is, from 0.
    seconds: how long to wait for the others.
  Raises:
    InputError: flags that do not fit each other, a coordinator that does not answer, processes that do not come or cannot join.
  """
  given = dict(coordinator=coordinator, processes=processes, process=process)
  missing = [f'--{name}' for name, value in given.items() if value is None]
  if 0 < len(missing) < 3:
    raise InputError(f'{", ".join(missing)} must be given too: --coordinator=HOST:PORT of process 0, --processes=how many, --process=which, from 0')
  if missing and not expected() and not _on_a_pod():
    return
  import jax
  local = None
  if missing:
    coordinator, processes, process, local = jax_internals.cluster(seconds)
    tasks = os.environ.get('SLURM_STEP_TASKS_PER_NODE', os.environ.get('OMPI_COMM_WORLD_LOCAL_SIZE', ''))
    if tasks.partition('(')[0] == '1':
      local = None  # jax would take one device; a process that is alone on its host takes them all
    if None in (coordinator, processes, process):
      raise InputError('the environment speaks of several processes, but not of where the first is: give --coordinator=HOST:PORT of process 0, '
                       '--processes=how many, --process=which, from 0; or run one process, outside of srun and mpirun')
  host, _, port = coordinator.rpartition(':')
  if not host or not port.isdigit() or not 0 < int(port) < 65536:
    raise InputError(f'--coordinator={coordinator}: expected HOST:PORT, such as 10.0.0.1:8476')
  if processes < 1 or not 0 <= process < processes:
    raise InputError(f'--process={process} of --processes={processes}: expected a number from 0 to {processes - 1}')
  rendezvous((host.strip('[]'), int(port)), processes, process, seconds)
  jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM for itself
  try:
    jax.distributed.initialize(coordinator, processes, process, local, initialization_timeout=seconds,
                               heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=60)
    jax.devices()  # together, for each waits for the devices of the others
  except RuntimeError as error:
    raise InputError(f'cannot join the other processes: {" ".join(str(error).split())[:300]}') from error


def rendezvous(address, processes, process, seconds):
  """Returns when all processes are there. jax would end the process with a stack trace where one is missing, and not say which.

  Process 0 listens on the port that jax's service takes afterwards; the others tell it their numbers, and it tells all who is late.
  """
  until = time.monotonic() + seconds
  if process:
    late = _tell(address, process, until, seconds)
  else:
    late = _hear(address[1], processes, until)
  if late:
    raise InputError(f'process {late} of {processes} did not come within {seconds} s: see whether its host is up, and start all of them together')


def _hear(port, processes, until):
  """In process 0: the numbers of those that did not come, as '1, 3', which it also tells the others."""
  here = {}
  with contextlib.ExitStack() as stack:
    try:
      server = stack.enter_context(socket.create_server(('', port)))
    except OSError as error:
      raise InputError(f'port {port} cannot be used on this host ({error.strerror}): give another in --coordinator, on all hosts') from error
    while len(here) < processes - 1 and time.monotonic() < until:
      server.settimeout(max(.01, until - time.monotonic()))
      with contextlib.suppress(OSError, ValueError):
        connection = stack.enter_context(server.accept()[0])
        connection.settimeout(5)
        number = int(connection.recv(16))
        if number in here:
          raise InputError(f'two processes say that they are --process={number}: give each its own')
        if 0 < number < processes:
          here[number] = connection
    late = ', '.join(str(k) for k in range(1, processes) if k not in here)
    for connection in here.values():
      with contextlib.suppress(OSError):
        connection.sendall(f'late {late}'.encode())
  return late


def _tell(address, process, until, seconds):
  """In another process: the same, as process 0 has told it."""
  while True:
    problem = 'something else listens there'
    try:
      with socket.create_connection(address, timeout=5) as connection:
        connection.sendall(str(process).encode())
        connection.settimeout(max(1., until - time.monotonic() + 5))
        heard = connection.recv(4096)
        if heard.startswith(b'late'):
          return heard.decode().removeprefix('late').strip()
    except OSError as error:
      problem = error
    if time.monotonic() > until:
      raise InputError(f'the coordinator {address[0]}:{address[1]} did not answer within {seconds} s ({problem}): start process 0 '
                       'there, and see that its port can be reached from this host')
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
