"""What lies behind the name of a data set may change: that is said."""
from etils import epath
import numpy as np

from diffusion import commands
from tests.test_seam import choices, config  # noqa: F401: a fixture


def test_other_data_behind_the_same_name_are_said_on_resume_and_in_evaluations(tmp_path, capsys):
  values, path = np.random.default_rng(0).normal(size=(40, 16)), tmp_path / 'mine.npy'
  settings = dict(data=f'series({path}, heldout=8)', task='series', guide='')
  def train(steps):
    commands.train(config('vector', steps=steps, **settings), epath.Path(tmp_path) / 'run')
    return 'other data than at the checkpoint' in capsys.readouterr().out
  np.save(path, values)
  assert not train(2) and not train(3)
  np.save(path, values[::-1])  # the same series in another order is another order of batches
  assert train(4)
  assert not train(5)  # said once
  np.save(path, values + 1)
  c = config('vector', steps=5, **settings)
  c.evaluate.parts = 'loss'
  commands.evaluate(c, epath.Path(tmp_path) / 'run')
  assert 'other data than at the checkpoint' in capsys.readouterr().out
  [written] = (tmp_path / 'run/evaluations').glob('*/evaluation.json')
  assert 'other data than at the checkpoint' in written.read_text()
