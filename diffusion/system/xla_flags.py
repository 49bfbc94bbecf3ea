"""Flags of XLA, which come and go with its versions: an unknown one in XLA_FLAGS ends the process at its first use of jax."""
import functools
import importlib.util
import mmap
import os
from pathlib import Path

# What reads XLA_FLAGS, if installed: a package, and its library with an XLA of its own.
READERS = (('jaxlib', '*jax_common*'), ('libtpu', 'libtpu.so'), ('jax_plugins', '*/xla_*_plugin.so'))

# XLA compiles sums on CPUs with YNNPACK, and some come out wrong, in silence. Of jaxlib 0.10.2: jax issue 39103. Of 0.11.2 and 0.12.0: above
# 4096 rows, where a product with one value a row is used twice, its factor is lost (tests/system/test_xla_flags.py has both in a few lines).
RIGHT_SUMS = ('xla_cpu_experimental_ynn_fusion_type', '-reduce')


def add(name, value):
  """Sets a flag for this process and those that it starts, where every XLA here knows it and the user has not set it."""
  flags = os.environ.get('XLA_FLAGS', '')
  if name not in flags and known(name):
    os.environ['XLA_FLAGS'] = f'{flags} --{name}={value}'.strip()


@functools.cache
def known(name):
  """Whether every XLA that is installed registers this flag. Its name is then a string of the library; jax need not start for that."""
  return all(_holds(path, b'\0' + name.encode() + b'\0') for path in _libraries())


def _libraries():
  """The libraries that read XLA_FLAGS.

  Raises:
    FileNotFoundError: jaxlib is laid out otherwise.
  """
  found = {package: [path for folder in _folders(package) for path in sorted(Path(folder).glob(pattern))] for package, pattern in READERS}
  if not found['jaxlib']:
    raise FileNotFoundError('jaxlib has no library named like libjax_common.so: which flags XLA knows cannot be told (see READERS)')
  return [path for paths in found.values() for path in paths]


def _folders(package):
  spec = importlib.util.find_spec(package)
  return spec.submodule_search_locations if spec else []


def _holds(path, text):
  with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    return content.find(text) >= 0
