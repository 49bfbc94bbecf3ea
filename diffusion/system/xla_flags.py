"""XLA flags, which come and go with its versions: an unknown one in XLA_FLAGS ends the process when jax starts."""
import functools
import importlib.metadata
import importlib.util
import mmap
import os
from pathlib import Path

# The packages that read XLA_FLAGS, if installed, and in each the library that contains an XLA.
READERS = (('jaxlib', '*jax_common*'), ('libtpu', 'libtpu.so'), ('jax_plugins', '*/xla_*_plugin.so'))

# On CPUs, XLA compiles sums with YNNPACK, and some are silently wrong. jaxlib 0.11.2 and 0.12.0: above 4096 rows, if a
# product with one value per row is used twice, its factor is lost; our variational bound was. jaxlib 0.10.2: the sum of
# squares of a product of matrices is rounded to bfloat16 (jax issue 39103), which our code does not compute; there the
# flag would make a training step 1.28 times as long. tests/system/test_xla_flags.py reproduces both in a few lines.
RIGHT_SUMS = ('xla_cpu_experimental_ynn_fusion_type', '-reduce')
WRONG_SINCE = (0, 11, 2)


def add(name, value):
  """Sets a flag for this process and its children, if every installed XLA knows it and the user has not set it."""
  flags = os.environ.get('XLA_FLAGS', '')
  if name not in flags and known(name):
    os.environ['XLA_FLAGS'] = f'{flags} --{name}={value}'.strip()


def value(name):
  """What XLA_FLAGS says of a flag, the last time it does, as a string; '' where it does not."""
  said = [flag.partition('=')[2] for flag in os.environ.get('XLA_FLAGS', '').split() if flag.startswith(f'--{name}=')]
  return said[-1] if said else ''


def add_right_sums():
  """Switches off the sums of YNNPACK in the versions of jaxlib where ours come out wrong."""
  version = importlib.metadata.version('jaxlib').split('.')[:3]
  if tuple(int(number) for number in version) >= WRONG_SINCE:
    add(*RIGHT_SUMS)


@functools.cache
def known(name):
  """Whether every installed XLA registers this flag: its name is then a string in the library. jax is not started."""
  return all(_holds(path, b'\0' + name.encode() + b'\0') for path in _libraries())


def _libraries():
  """The libraries that read XLA_FLAGS.

  Raises:
    FileNotFoundError: jaxlib has another layout.
  """
  libraries = {package: [path for folder in _folders(package) for path in sorted(Path(folder).glob(pattern))]
               for package, pattern in READERS}
  if not libraries['jaxlib']:
    raise FileNotFoundError('jaxlib has no library named like libjax_common.so, which lists the flags that XLA knows '
                            '(see READERS)')
  return [path for paths in libraries.values() for path in paths]


def _folders(package):
  spec = importlib.util.find_spec(package)
  return spec.submodule_search_locations if spec else []


def _holds(path, text):
  with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    return content.find(text) >= 0
