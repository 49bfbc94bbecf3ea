"""Tests run on one CPU device, and compile fast rather than run fast: their networks are tiny."""
import fcntl
import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from diffusion.system import xla_flags
from tests import forks

xla_flags.add('xla_backend_optimization_level', 0)
xla_flags.add('xla_llvm_disable_expensive_passes', 'true')
# Without the fusion emitters a training step compiles in half the time, with the same bits (jaxlib before 0.11.2).
xla_flags.add('xla_cpu_use_fusion_emitters', 'false')
xla_flags.add('xla_cpu_parallel_codegen_split_count', 1)  # programs are small, and pytest has as many workers as cores
xla_flags.add_right_sums()

ROOT = Path(__file__).parent.parent
# Compiler options of jax.jit for tests that run longer than they compile; they give the same bits.
RUN_FAST = dict(xla_backend_optimization_level=2, xla_llvm_disable_expensive_passes=False)

# Files that take longest, the longest first: they start first, so that no worker is left alone with one at the end.
LONGEST = (
  'training/test_devices.py', 'test_main.py', 'test_seam.py', 'test_latents.py', 'test_dalle2.py', 'test_recipes.py',
  'test_clip_main.py', 'test_old_checkpoints.py', 'system/test_multihost.py', 'evaluation/test_evaluate_command.py',
  'evaluation/test_trained_features.py',
  'training/test_chaos.py', 'nets/test_unet.py', 'generation/test_edits.py', 'objectives/test_vdm.py',
  'interop/test_pipelines.py', 'interop/test_workdir.py',
  'generation/test_export.py', 'experiments/test_sweep_local.py', 'samplers/test_solvers.py',
  'training/test_loop.py', 'training/test_resources.py', 'training/test_options.py',
  'generation/test_guide_models.py', 'objectives/test_denoising.py', 'system/test_checkpoint_processes.py',
  'core/test_guidance_calls.py', 'setup/test_build.py', 'nets/test_inception.py', 'system/test_lock.py',
  'data/test_prefetch.py', 'samplers/test_ancestral.py')

# `pytest -m quick`: the mathematics alone.
QUICK_FOLDERS = ('core', 'samplers', 'objectives')
QUICK_FILES = ('test_imports.py', 'evaluation/test_frechet.py', 'evaluation/test_resize.py',
               'evaluation/test_scores.py')
NOT_QUICK = {  # files, or single tests, of QUICK_FOLDERS: why not
  'core/test_guidance_calls.py': 'it starts processes, and compiles networks',
  'objectives/test_noisy_classifier.py': 'it compiles networks',
  'objectives/test_contrastive.py::test_eight_devices_give_what_one_gives': 'it starts a process',
  'objectives/test_vdm.py': 'it trains curves',
  'objectives/test_autoencoder.py': 'it compiles gradients of two players',
  'samplers/test_ancestral.py::test_stochastic_samplers_at_all_levels_give_the_mean_and_spread_of_the_data':
    'it draws 20,000 samples at all levels',
  'samplers/test_solvers.py::test_stochastic_solvers_give_the_mean_and_the_spread_of_the_data': 'as above',
  'samplers/test_solvers_parity.py': 'it needs other libraries',
}
COSINE = '--config=configs/cosine_ddim.py:tiny'


def is_quick(name):
  """Whether the test `name`, relative to this folder, is of the mathematics alone; see QUICK_FOLDERS."""
  file = name.split('::')[0]
  listed = file in QUICK_FILES or file.split('/')[0] in QUICK_FOLDERS
  return listed and file not in NOT_QUICK and name.split('[')[0] not in NOT_QUICK


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items):
  """Marks what is quick, and puts the longest files first."""
  places = {file: place for place, file in enumerate(LONGEST)}
  def name(item):
    return item.path.relative_to(Path(__file__).parent).as_posix() + '::' + item.nodeid.split('::', 1)[-1]
  for item in items:
    if is_quick(name(item)):
      item.add_marker('quick')
  items.sort(key=lambda item: places.get(name(item).split('::')[0], len(places)))


def pytest_collection_finish():
  """Thousands of tests stay, and the collector would search them again and again while functions are traced."""
  gc.collect()
  gc.freeze()


@pytest.fixture(scope='session')
def shared_dir(tmp_path_factory):
  """A folder of this session that all xdist workers share."""
  base = tmp_path_factory.getbasetemp()
  return base.parent if 'PYTEST_XDIST_WORKER' in os.environ else base


@pytest.fixture(scope='session')
def cache_dir(shared_dir):
  """One folder for generated data and compiled programs, shared by all processes of the session."""
  return shared_dir / 'diffusion-cache'


@pytest.fixture(scope='session', autouse=True)
def compile_cache(cache_dir):
  """Test processes share the compile cache of the commands (diffusion/system/platform.py)."""
  jax.config.update('jax_compilation_cache_dir', str(cache_dir / 'programs'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', .1)  # writing what compiles faster would take longer
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  compilation_cache.reset_cache()  # what was compiled at import has started it without a folder


@pytest.fixture(scope='session')
def command(cache_dir, tmp_path_factory):
  """run(*arguments) -> CompletedProcess of `python -m diffusion.main`, on two CPU devices.

  On Linux it runs in a fork that has its imports (see forks.py); real=True starts Python, and so does start=True, which
  returns the Popen.
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
def main_job(command, shared_dir):
  """(work directory, printed text) of the tiny main job, which one worker runs for all: read it, change nothing."""
  folder = shared_dir / 'main-job'
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
  """Collects what failed reads and writes left behind after the file, and not in the middle of some later test."""
  yield
  gc.collect()
