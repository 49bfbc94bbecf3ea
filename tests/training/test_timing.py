"""config.minutes: how many steps are chosen, and that they stay the same."""
import time

from etils import epath
import numpy as np
import pytest

from diffusion import commands
from diffusion.errors import InputError
from diffusion.setup.choices import CHOICES
from diffusion.training import timing
from diffusion.training.open_model import stored_meta
from tests import test_seam, things


@pytest.fixture(autouse=True, scope='module')
def choices():
  with pytest.MonkeyPatch.context() as patch:
    for field, name, made in (('data', 'things', things.things), ('task', 'thing', things.thing),
                              ('net', 'any', things.AnyNet)):
      patch.setitem(CHOICES[field], name, made)
    yield


class Clock:
  """time.monotonic that advances by hand."""
  def __init__(self):
    self.now = 1000.

  def monotonic(self):
    return self.now


def test_the_steps_fill_the_time_that_is_left_but_for_a_share(monkeypatch, tmp_path):
  clock, seen = Clock(), []
  monkeypatch.setattr(timing, 'time', clock)
  opened = commands.open_run(test_seam.config('vector', minutes=10.), tmp_path,
                             things.things('vector'), report=lambda *_: None)
  def step(state, batch, key, frozen, steps):
    seen.append(int(steps))
    clock.now += 30. if len(seen) <= timing.UNTIMED else .25  # the first ones compile, and do not count
    return state, {}
  start = clock.now
  _, steps = timing.choose(opened.run, opened.data.train, None, step, {}, lambda: clock.now - start)
  spent = 30 * timing.UNTIMED + .25 * (timing.PILOT - timing.UNTIMED)
  assert steps == timing.PILOT + int(.85 * (600 - spent) / .25) and len(seen) == timing.PILOT
  with pytest.raises(InputError, match='minutes=10: they are over'):
    timing.choose(opened.run, opened.data.train, None, step, {}, lambda: 601.)


def test_a_run_ends_in_its_time_and_a_resumed_one_has_the_same_steps(tmp_path, capsys):
  workdir, begin = epath.Path(tmp_path / 'run'), time.monotonic()
  settings = dict(minutes=.15, save_every=10 ** 6, sample_every=10 ** 6, log_every=1000, val_every=10 ** 6)
  commands.train(test_seam.config('vector', **settings), workdir)
  assert time.monotonic() - begin < 60
  steps = stored_meta(workdir)['config']['steps']
  assert steps > timing.PILOT and f'{steps:,} in all' in capsys.readouterr().out
  commands.train(test_seam.config('vector', **settings), workdir)
  assert f'complete after {steps} steps' in capsys.readouterr().out
  again = test_seam.config('vector', **settings | dict(minutes=.3))
  assert timing.stored_steps(again, test_seam.config('vector', **settings, steps=steps)) == 2 * steps


def test_the_rate_of_learning_does_not_depend_on_the_number_of_steps_while_it_rises(tmp_path):
  opened = commands.open_run(test_seam.config('vector', lr_schedule='cosine(warmup=100)'), tmp_path,
                             things.things('vector'), report=lambda *_: None)
  rates = [np.array([opened.run.rate(np.int32(steps))(i) for i in range(timing.PILOT)]) for steps in (2 ** 30, 500)]
  np.testing.assert_array_equal(*rates)
