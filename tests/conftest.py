"""Tests run on one CPU device, and compile fast rather than run fast: their networks are tiny."""
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {QUICK}'.strip()

import pytest


@pytest.fixture(scope='session')
def cache_dir(tmp_path_factory):
  """One folder for generated data and compiled programs, shared by all processes that the tests start."""
  return tmp_path_factory.getbasetemp().parent / 'diffusion-cache'
