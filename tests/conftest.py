"""Tests run on one CPU device, and compile fast rather than run fast: their networks are tiny."""
import fcntl
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import pytest

from diffusion.system import xla_flags
from tests import forks

xla_flags.add('xla_backend_optimization_level', 0)
xla_flags.add('xla_llvm_disable_expensive_passes', 'true')
# Without the fusion emitters a training step compiles in half the time, with the same bits; jaxlib 0.11.2 and later have no others.
xla_flags.add('xla_cpu_use_fusion_emitters', 'false')
xla_flags.add(*xla_flags.RIGHT_SUMS)

ROOT = Path(__file__).parent.parent
COSINE = '--config=configs/cosine_ddim.py:tiny'


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
  """One folder for generated data and compiled programs, shared by all processes that the tests start."""
  return tmp_path_factory.getbasetemp().parent / 'diffusion-cache'


@pytest.fixture(scope='session')
def command(cache_dir, tmp_path_factory):
  """run(*arguments) -> CompletedProcess of `python -m diffusion.main`, on two CPU devices.

  It runs in a fork that has its imports (see forks.py), on Linux; real=True starts Python, and so does start=True, which gives the Popen.
  """
  env = dict(os.environ, DIFFUSION_CACHE=str(cache_dir),
             XLA_FLAGS=os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2')
  with forks.server(env, ROOT, tmp_path_factory.mktemp('forks')) as forked:
    def run(*arguments, start=False, real=False, cwd=ROOT):
      arguments = list(map(str, arguments))
      words = [sys.executable, '-m', 'diffusion.main', *arguments]
      if start:
        return subprocess.Popen(words, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
      if real or sys.platform != 'linux':
        return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=forks.LIMIT)
      return forked(arguments, cwd)
    yield run


@pytest.fixture(scope='session')
def main_job(command, tmp_path_factory):
  """(work directory, what was printed) of the tiny main job, which one of the workers runs for all: read it, change nothing."""
  base = tmp_path_factory.getbasetemp()
  folder = (base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base) / 'main-job'
  folder.mkdir(exist_ok=True)
  printed = folder / 'printed.txt'
  with open(folder / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not printed.exists():
      done = command(COSINE, f'--workdir={folder / "run"}', real=True)
      assert done.returncode == 0, done.stderr
      printed.write_text(done.stdout)
  return folder / 'run', printed.read_text()


@pytest.fixture(scope='module')
def trained(main_job, tmp_path_factory):
  """A work directory after the tiny main job, of this module alone."""
  return shutil.copytree(main_job[0], tmp_path_factory.mktemp('trained') / 'run')


@pytest.fixture(scope='module')
def swept():
  """What reads and writes that failed have left is collected after the file, and not in the middle of some later test."""
  yield
  gc.collect()
