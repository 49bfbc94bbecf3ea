"""Autoguidance and classifier guidance from checkpoints: what they compute, and what is refused."""
import json

import jax
import numpy as np
import pytest

from diffusion.core.gaussian import take
from diffusion.errors import InputError
from diffusion.generation import guide_models
from diffusion.setup import build
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training.loop import make_state

SHAPE, CLASSES = (8, 8, 1), ('a', 'b')
NET = 'unet(channels=16, multipliers=(1,), blocks=1, attention=(), zero_init=False)'


def config(**changes):
  c = tiny(default())
  c.net, c.clip, c.guidance = NET, False, 3.
  for key, value in changes.items():
    target, _, field = key.rpartition('__')
    (c[target] if target else c)[field] = value
  return c


def stored(folder, config, steps=(1,), classes=CLASSES):
  """A work directory whose checkpoints hold fresh weights, of another seed at every step."""
  run = build.build(config, SHAPE, classes, sharding.make_mesh(devices=jax.devices()[:1]))
  checkpoints = open_checkpoints(folder / 'checkpoints')
  weights = {}
  for step in steps:
    state = make_state(run, jax.random.key(step))
    weights[step] = state.ema
    checkpoints.save(step, state, dict(config=json.loads(config.to_json()), shape=list(SHAPE), classes=list(classes), versions={}))
  checkpoints.close()
  return run, weights


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('second')
  run, weights = stored(root / 'model', config(), (1, 2))
  classifier = config(net='classifier(channels=16, multipliers=(1,), blocks=1, attention=(), zero_init=False)')
  return root, run, weights, *stored(root / 'classifier', classifier)


X = np.linspace(-2, 2, 2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
LEVEL = take(build.make('schedule', 'cosine'), 600)
LABEL = np.eye(2, dtype=np.float32)


def test_autoguidance_leads_away_from_the_weights_of_another_step(folders):
  root, run, weights, *_ = folders
  guided, params = guide_models.helped(run, config(sample__bad=f'{root}/model@1'), weights[2], '')
  good, bad = (run.plain(weights[i], LABEL)(X, LEVEL).x0 for i in (2, 1))
  assert float(abs(good - bad).max()) > .01
  np.testing.assert_allclose(guided.denoise(params, LABEL)(X, LEVEL).x0, bad + 3 * (good - bad), atol=1e-4)
  guided, params = guide_models.helped(run, config(sample__bad=f'{root}/model'), weights[2], '')  # the newest: itself
  np.testing.assert_allclose(guided.denoise(params, LABEL)(X, LEVEL).x0, good, atol=1e-5)


def test_a_classifier_leads_the_unconditional_model_up_its_slope(folders):
  root, run, weights, classifier, (scores) = folders
  c = config(guide='classifier', sample__classifier=f'{root}/classifier')
  run = build.build(c, SHAPE, CLASSES, run.mesh)
  guided, params = guide_models.helped(run, c, weights[2], '')
  told = guided.denoise(params, LABEL)(X, LEVEL)
  free = run.plain(weights[2], 0 * LABEL)(X, LEVEL)
  direction = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
  log_prob = lambda x: float(classifier.plain(scores[1], LABEL)(x, LEVEL).sum())
  slope = (log_prob(X + 1e-2 * direction) - log_prob(X - 1e-2 * direction)) / 2e-2
  moved = float(np.sum((told.eps - free.eps) * direction))
  assert moved == pytest.approx(-3 * LEVEL.sigma * slope, rel=.02)


@pytest.mark.parametrize('changes, message', [
  (dict(sample__bad='{root}/nowhere'), 'holds no checkpoint'), (dict(sample__bad='{root}/model@7'), 'no checkpoint of step 7; there are 1, 2'),
  (dict(sample__bad='{root}/model@last'), 'one with a step'), (dict(sample__bad='{root}/model', guidance=1.), 'scale above 1'),
  (dict(sample__classifier='{root}/classifier'), 'set both'), (dict(guide='classifier'), 'set both'),
  (dict(guide='classifier', sample__classifier='{root}/model'), 'noisy_classifier'),
  (dict(sample__bad='x', sample__classifier='y'), 'give one of them'),
])
def test_what_does_not_fit_is_named(folders, changes, message):
  root, run, weights, *_ = folders
  changes = {key: value.format(root=root) if isinstance(value, str) else value for key, value in changes.items()}
  with pytest.raises(InputError, match=message):
    guide_models.helped(run, config(**changes), weights[2], '')


def test_a_model_of_another_schedule_is_refused(folders, tmp_path):
  _, run, weights, *_ = folders
  stored(tmp_path, config(schedule='linear'))
  with pytest.raises(InputError, match="trained on config.schedule='linear', the model on 'cosine'"):
    guide_models.helped(run, config(sample__bad=str(tmp_path)), weights[2], '')


def test_an_unconditional_and_a_self_conditioned_model_are_led_too(tmp_path):
  for name, changes, classes in (('free', dict(), ()), ('self', dict(self_condition=True), CLASSES)):
    c = config(sample__bad=f'{tmp_path}/{name}@1', **changes)
    run, weights = stored(tmp_path / name, c, (1, 2), classes)
    guided, params = guide_models.helped(run, c, weights[2], '')
    cond = LABEL if classes else None
    good, bad = (run.plain(weights[i], cond)(X, LEVEL, X / 2).x0 for i in (2, 1))
    told = guided.denoise(params, cond)(X, LEVEL, X / 2).x0
    np.testing.assert_allclose(told, bad + 3 * (good - bad), atol=1e-4)


def test_a_model_of_other_classes_is_refused(folders, tmp_path):
  _, run, weights, *_ = folders
  stored(tmp_path, config(), classes=('a', 'c'))
  with pytest.raises(InputError, match="of other data: classes .'a', 'c'. there, .'a', 'b'. here"):
    guide_models.helped(run, config(sample__bad=str(tmp_path)), weights[2], '')
