"""Tests run on one CPU device, and compile fast rather than run fast: their networks are tiny."""
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {QUICK}'.strip()

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
  """One folder for generated data and compiled programs, shared by all processes that the tests start."""
  return tmp_path_factory.getbasetemp().parent / 'diffusion-cache'


@pytest.fixture(scope='module')
def command(cache_dir):
  """run(*arguments) -> CompletedProcess of `python -m diffusion.main`, on two CPU devices."""
  env = dict(os.environ, DIFFUSION_CACHE=str(cache_dir),
             XLA_FLAGS=os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=2')
  def run(*arguments, start=False, cwd=ROOT):
    words = [sys.executable, '-m', 'diffusion.main', *map(str, arguments)]
    if start:
      return subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=400)
  return run
