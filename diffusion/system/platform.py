"""Settings to make before jax starts: one CPU device per core, the memory allocator, the compilation cache.

Environment variables that the user has set are respected. Only the compilation cache concerns GPUs and TPUs.
"""
import ctypes
import importlib.util
import os
import sys
from pathlib import Path

from diffusion.system import xla_flags
from diffusion.system.cache import cache_dir


def start(devices=None):
  """Prepares the process. Call it first, before jax runs anything; calling it again changes nothing.

  Args:
    devices: number of CPU devices; None: one per core, at most 8, and a power of two so that batches divide evenly.
  """
  cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
  devices = devices or min(8, 1 << (cores.bit_length() - 1))
  if importlib.util.find_spec('libtpu') and not _accelerator_attached():
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # otherwise libtpu searches for a TPU for minutes
  xla_flags.add('xla_force_host_platform_device_count', devices)
  os.environ.setdefault('NPROC', str(_threads(cores)))
  if devices >= cores:
    xla_flags.add('xla_cpu_multi_thread_eigen', 'false')  # each device has its own core; more threads would only wait
  xla_flags.add_right_sums()
  _keep_memory()
  _cache_programs()


def _threads(cores):
  """How many threads run programs: all that wait for each other in a collective must exist, of two programs at once.

  More than that only take turns on the cores: with 16 on 2 cores a training step took 1.2 times as long, and sampling
  1.3 (jax 0.10.2) to 1.6 times (jax 0.12).
  """
  devices = xla_flags.value('xla_force_host_platform_device_count') or os.environ.get('JAX_NUM_CPU_DEVICES', '')
  return max(cores, 2 * int(devices) if devices.isdigit() else 16)


def _accelerator_attached():
  return any(any(Path('/dev').glob(name)) for name in ('accel*', 'vfio/[0-9]*', 'nvidia[0-9]*'))


def _keep_memory():
  """Makes glibc keep freed memory and mmap no large blocks; otherwise every step has to fault its memory in again.

  Not M_ARENA_MAX=1 as well: the threads of the compiler would share one heap and leave it in pieces, after which a step
  took 1.6 times as long, until the next start found the program in the cache.
  """
  if sys.platform != 'linux' or 'GLIBC_TUNABLES' in os.environ or 'LD_PRELOAD' in os.environ:
    return
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)  # musl has none
  if mallopt:
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def _cache_programs():
  """Keeps compiled programs beside cached data, by default in ~/.cache/diffusion/programs."""
  import jax
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(cache_dir() / 'programs'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
