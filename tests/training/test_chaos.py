"""A run killed by SIGKILL again and again, also in the middle of saving, ends like one that was never killed."""
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = 10


@pytest.mark.skipif(sys.platform != 'linux', reason='the starts are forks, watched in /proc')
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits_as_one_that_is_not(tmp_path, cache_dir):
  words = [sys.executable, '-m', 'experiments.benchmarks.chaos', f'--kills={KILLS}', f'--workdir={tmp_path}']
  env = dict(os.environ, DIFFUSION_CACHE=str(cache_dir))
  done = subprocess.run(words, cwd=Path(__file__).parents[2], env=env, capture_output=True, text=True, timeout=900)
  assert done.returncode == 0, done.stderr
  killed, saving = map(int, re.search(r'^\| all \| (\d+) \| (\d+) ', done.stdout, re.M).groups())
  assert killed == KILLS and saving >= KILLS // 5, done.stdout  # some of them left a checkpoint half-written
  # What it says is looked up here: the whole state of both runs, and a figure for every step, once.
  whole, other = (tmp_path / name for name in ('whole', 'killed'))
  assert (whole / 'final').read_bytes() == (other / 'final').read_bytes()
  assert (whole / 'final').stat().st_size > 4 * 4 * 64 * 64  # parameters, their average, two moments
  logs = [(folder / 'metrics.jsonl').read_text() for folder in (whole, other)]
  losses = [re.findall(r'"step": (\d+).*?"loss": ([^,}]+)', text) for text in logs]
  assert losses[0] == losses[1] and [int(step) for step, _ in losses[0]] == list(range(1, 8 * KILLS + 1))
  assert all(folder.name.isdigit() for folder in (other / 'checkpoints').iterdir())  # nothing unfinished stays
