"""Autoguidance and classifier guidance from checkpoints: what they compute, and what is refused."""
import jax
import numpy as np
import pytest

from diffusion.core.gaussian import take
from diffusion.errors import InputError
from diffusion.setup.build import make, Weights
from diffusion.setup.choices import CHOICES
from diffusion.setup.config import default, tiny
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training.open_model import with_guide_model
from diffusion.training.record import to_meta
from diffusion.training.state import make_state
from experiments.image_run import image_run
from tests.linear_network import Linear

SHAPE, CLASSES = (8, 8, 1), ('a', 'b')


@pytest.fixture(autouse=True, scope='module')
def linear():
  """config.net='linear': the models to be guided may be any; the classifier is a real one."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(CHOICES['net'], 'linear', Linear)
    yield


def config(**changes):
  c = tiny(default())
  c.update(dict(net='linear', clip_x0=False, guide='cfg(3)') | changes)
  return c


def guided_by(run, guide, params, **changes):
  """The model guided as config.guide says: (Experiment, Weights)."""
  return with_guide_model(image_run(config(guide=guide, **changes), SHAPE, run.classes), params)


def stored(folder, config, steps=(1,), classes=CLASSES):
  """A work directory whose checkpoints hold fresh weights, of another seed at every step."""
  run = image_run(config, SHAPE, classes)
  checkpoints = open_checkpoints(folder / 'checkpoints')
  weights = {}
  for step in steps:
    state = make_state(run, jax.random.key(step))
    weights[step] = Weights(state.ema)
    checkpoints.save(step, state, to_meta(config, run))
  checkpoints.close()
  return run, weights


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  root = tmp_path_factory.mktemp('second')
  run, weights = stored(root / 'model', config(), (1, 2))
  net = 'classifier(channels=16, multipliers=(1,), blocks=1, attention=(), zero_init=False)'
  classifier = config(objective='classifier', net=net)
  return root, run, weights, *stored(root / 'classifier', classifier)


X = np.linspace(-2, 2, 2 * 64, dtype=np.float32).reshape(2, 8, 8, 1)
LEVEL = take(make('schedule', 'cosine'), 600)
LABEL = np.eye(2, dtype=np.float32)


def test_autoguidance_leads_away_from_the_weights_of_another_step(folders):
  root, run, weights, *_ = folders
  guided, params = guided_by(run, f'autoguidance({root}/model@1, 3)', weights[2])
  good, bad = (run.plain(weights[i], LABEL)(X, LEVEL).x0 for i in (2, 1))
  assert float(abs(good - bad).max()) > .01
  np.testing.assert_allclose(guided.denoise(params, LABEL)(X, LEVEL).x0, bad + 3 * (good - bad), atol=1e-4)
  guided, params = guided_by(run, f'autoguidance({root}/model, 3)', weights[2])  # the newest: itself
  np.testing.assert_allclose(guided.denoise(params, LABEL)(X, LEVEL).x0, good, atol=1e-5)


def test_a_classifier_leads_the_unconditional_model_up_its_slope(folders):
  root, run, weights, classifier, scores = folders
  guided, params = guided_by(run, f'classifier({root}/classifier, 3)', weights[2])
  pred = guided.denoise(params, LABEL)(X, LEVEL)
  free = run.plain(weights[2], 0 * LABEL)(X, LEVEL)
  direction = np.random.default_rng(0).normal(size=X.shape).astype(np.float32)
  log_prob = lambda x: float(classifier.log_prob(scores[1], LABEL)(x, LEVEL).sum())
  slope = (log_prob(X + 1e-2 * direction) - log_prob(X - 1e-2 * direction)) / 2e-2
  moved = float(np.sum((pred.eps - free.eps) * direction))
  assert moved == pytest.approx(-3 * LEVEL.sigma * slope, rel=.02)


@pytest.mark.parametrize('guide, message', [
  ('autoguidance({root}/nowhere, 3)', 'nowhere holds no checkpoint'),
  ('autoguidance({root}/model@7, 3)', 'no checkpoint of step 7; .*1, 2'),
  ('autoguidance({root}/model@last, 3)', 'one with a step'), ('autoguidance({root}/model, 1)', 'scale 1'),
  ('autoguidance({root}/classifier, 3)', 'names a classifier'), ('classifier({root}/model, 3)', 'noisy_classifier'),
  ('classifier', "'model'"), ('autoguidance(x) | classifier(y)', 'only one part'),
])
def test_a_second_model_that_does_not_fit_is_refused(folders, guide, message):
  root, run, weights, *_ = folders
  with pytest.raises(InputError, match=message):
    guided_by(run, guide.format(root=root), weights[2])


def test_a_classifier_without_a_class_to_lead_to_is_refused(folders):
  root, run, weights, *_ = folders
  run = image_run(config(guide=f'classifier({root}/classifier, 3)'), SHAPE, CLASSES)
  with pytest.raises(InputError, match="'none'"):
    with_guide_model(run, weights[2], 'none')


def test_a_model_of_another_schedule_is_refused(folders, tmp_path):
  _, run, weights, *_ = folders
  stored(tmp_path, config(schedule='linear'))
  with pytest.raises(InputError, match="trained on config.schedule='linear', the model on 'cosine'"):
    guided_by(run, f'autoguidance({tmp_path}, 3)', weights[2])


def test_an_unconditional_and_a_self_conditioned_model_are_led_too(tmp_path):
  for name, changes, classes in (('free', dict(), ()), ('self', dict(self_condition=True), CLASSES)):
    run, weights = stored(tmp_path / name, config(guide='', **changes), (1, 2), classes)
    guided, params = guided_by(run, f'autoguidance({tmp_path}/{name}@1, 3)', weights[2], **changes)
    cond = LABEL if classes else None
    good, bad = (run.plain(weights[i], cond)(X, LEVEL, X / 2).x0 for i in (2, 1))
    x0 = guided.denoise(params, cond)(X, LEVEL, X / 2).x0
    np.testing.assert_allclose(x0, bad + 3 * (good - bad), atol=1e-4)


def test_a_model_of_other_classes_is_refused(folders, tmp_path):
  _, run, weights, *_ = folders
  stored(tmp_path, config(), classes=('a', 'c'))
  with pytest.raises(InputError, match="on other data: classes .'a', 'c'. there, .'a', 'b'. here"):
    guided_by(run, f'autoguidance({tmp_path}, 3)', weights[2])
