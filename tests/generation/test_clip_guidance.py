"""CLIP guidance from checkpoints: what it computes, with which parts of the stack it goes, and what is refused."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.core.gaussian import take
from diffusion.data.arrays import image_dataset
from diffusion.errors import InputError
from diffusion.setup import build
from diffusion.setup.build import Weights
from diffusion.setup.choices import CHOICES, make
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training.open_model import encoded_example, open_at, with_guide_model
from diffusion.training.record import to_meta
from diffusion.training.state import make_state

CAPTIONS = ['a red dragon', 'a blue dragon', 'a green hero', 'a hero']
CLIP = 'clip(size=8, patch=4, width=8, blocks=1, heads=2, text_width=8, text_blocks=1, text_heads=2)'
LEVEL = take(make('schedule', 'cosine'), 600)
SCALE = 7.


class Told(nn.Module):
  """(x, time, cond with tokens) -> x0, smooth in x and told the text; nothing of a text encoder."""
  vocabulary: int = 0

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    words = self.param('words', nn.initializers.normal(1.), (self.vocabulary, 8))[cond['tokens']]
    told = jnp.sum(words * cond['weights'][..., None], -2).reshape(len(x), -1)[:, :8]
    h = nn.Dense(32, name='in')(jnp.concatenate([x.reshape(len(x), -1), told, jnp.cos(time[:, None] / 300)], 1))
    return nn.Dense(x[0].size, name='out')(jnp.tanh(h)).reshape(x.shape)


@pytest.fixture(autouse=True, scope='module')
def told():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(CHOICES['net'], 'told', Told)
    yield


def config(guide='', **changes):
  c = tiny(default())
  c.update(dict(net='told', task='text_to_image(length=6)', clip_x0=False, guide=guide, batch=4) | changes)
  return c


def clip_config(noised=False, **changes):
  c = config(net=CLIP, task='pairs(length=6)', objective=f'contrastive(noised={noised})')
  c.update(changes)
  if not noised:
    c.grid, c.guide = default().grid, default().guide
  return c


def built(config, side=8, captions=CAPTIONS):
  data = image_dataset(np.zeros((4, side, side, 3), np.uint8), captions=captions)
  task = make('task', config.task, data=data)
  example = encoded_example(task, task.prepare(task.frozen, data))
  return build.build(config, task, example, sharding.make_mesh(devices=jax.devices()[:1]))


def stored(folder, config, **options):
  """A work directory with fresh weights."""
  run = built(config, **options)
  state = make_state(run, jax.random.key(5))
  checkpoints = open_checkpoints(folder / 'checkpoints')
  checkpoints.save(1, state, to_meta(config, run))
  checkpoints.close()
  return str(folder)


@pytest.fixture(scope='module')
def clips(tmp_path_factory):
  root = tmp_path_factory.mktemp('clips')
  return dict(noised=stored(root / 'noised', clip_config(True)), plain=stored(root / 'plain', clip_config()))


@pytest.fixture(scope='module')
def model():
  run = built(config())
  params, _ = run.objective.init(jax.random.key(1))
  return run, Weights(params)


X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def asked(run, *prompts):
  return run.task.ask(dict(prompt=list(prompts)), np.arange(2), 0).cond


def guided(guide, weights):
  return with_guide_model(built(config(guide)), weights)


def predicted(run, weights, cond, unguided=False):
  denoise = run.plain if unguided else run.denoise
  return jax.device_get(jax.jit(lambda weights, x: denoise(weights, cond)(x, LEVEL))(weights, X))


@pytest.mark.parametrize('kind', ['noised', 'plain'])
@pytest.mark.parametrize('start', ['', 'cfg(2) | '])
def test_it_moves_along_the_slope_of_the_cosine(kind, start, clips, model):
  """Against differences of what the CLIP's own model says, of x_t or of the estimate of x0."""
  run, weights = model
  cond = asked(run, 'a red dragon', 'a hero')
  second, other, _ = open_at(clips[kind])
  embed, texts = second.model(other).embed_image, np.asarray(jax.jit(second.model(other).embed_text)(cond))
  null = run.task.null(cond)
  single = run.plain(weights, cond if start else null)
  seen = jax.jit(lambda x: embed(x, LEVEL) if kind == 'noised' else embed(single(x, LEVEL).x0, None))
  before = predicted(*guided('cfg(2)', weights), cond) if start else predicted(run, weights, null, unguided=True)
  pred = predicted(*guided(f'{start}clip_guidance({clips[kind]}, {SCALE})', weights), cond)
  step = np.asarray(before.eps - pred.eps, np.float64) / float(SCALE * LEVEL.sigma)  # the slope that it took
  rng = np.random.default_rng(3)
  for _ in range(3):
    along = rng.normal(size=X.shape).astype(np.float32)
    rise = [np.sum(np.float64(np.asarray(seen(X + h * along)) * texts), -1) for h in (.01, -.01)]
    np.testing.assert_allclose((step * along).sum((1, 2, 3)), (rise[0] - rise[1]) / .02, rtol=.02, atol=2e-3)
  assert np.abs(step).max() > 1e-3
  np.testing.assert_allclose(LEVEL.alpha * pred.x0 + LEVEL.sigma * pred.eps, X, atol=1e-4)


def test_a_scale_of_0_changes_no_bit(clips, model):
  run, weights = model
  cond = asked(run, 'a red dragon', 'a hero')
  denoise = lambda made, both: predicted(made, both, cond)
  unguided, free = predicted(run, weights, run.task.null(cond), unguided=True), denoise(*guided('cfg(2)', weights))
  for kind in clips:
    jax.tree.map(np.testing.assert_array_equal, denoise(*guided(f'clip_guidance({clips[kind]}, 0)', weights)), unguided)
    jax.tree.map(np.testing.assert_array_equal, denoise(*guided(f'cfg(2) | clip_guidance({clips[kind]}, 0)', weights)),
                 free)
  assert np.any(denoise(*guided(f'clip_guidance({clips["noised"]}, 1)', weights)).x0 != unguided.x0)


def test_a_mix_of_texts_is_the_mix_of_their_vectors(clips, model):
  run, _ = model
  second, weights, _ = open_at(clips['plain'])
  embed = jax.jit(second.model(weights).embed_text)
  a, b = (np.asarray(embed(asked(run, prompt, prompt)))[0] for prompt in ('a red dragon', 'a hero'))
  mix = lambda text: np.asarray(embed(run.task.ask(dict(prompt_mix=text), np.arange(1), 0).cond))[0]
  wanted = .3 * a + .7 * b
  np.testing.assert_allclose(mix('0.3 * a red dragon + 0.7 * a hero'), wanted / np.linalg.norm(wanted), atol=1e-5)
  np.testing.assert_allclose(mix('1 * a red dragon + 0 * a hero'), a, atol=1e-5)


def test_what_does_not_fit_is_refused_in_one_line(clips, model, tmp_path):
  _, weights = model
  def refused(where, *words, guide='clip_guidance({}, 5)', **changes):
    with pytest.raises(InputError) as error:
      with_guide_model(built(config(guide.format(where), **changes)), weights)
    assert '\n' not in str(error.value) and all(word in str(error.value) for word in words), error.value
  larger = stored(tmp_path / 'larger', clip_config(), side=12)
  refused(larger, 'shape [12, 12, 3] there, [8, 8, 3] here')
  others = stored(tmp_path / 'words', clip_config(), captions=['one', 'two', 'three', 'four'])
  refused(others, 'tokens', 'there')
  model_folder = stored(tmp_path / 'model', config())
  refused(model_folder, 'configs/clip.py', 'objective denoising')
  refused(clips['noised'], "schedule='cosine'", "'linear'", schedule='linear')
  refused(tmp_path / 'nowhere', "config.guide='clip_guidance(", 'no checkpoint')
  refused(clips['plain'], 'is a CLIP', 'clip_guidance(', guide='classifier({}, 2)')
  refused(clips['plain'], 'clip_guidance(scale', 'finite number', guide='clip_guidance({}, nan)')
  refused(clips['plain'], 'only one part', guide='autoguidance(x, 2) | clip_guidance({}, 5)')
  with pytest.raises(InputError, match="guides to a text, but 'none' was requested"):
    with_guide_model(built(config(f'clip_guidance({clips["plain"]}, 5)')), weights, 'a hero\nnone')
  with pytest.raises(InputError, match='all 4 captions are'):
    built(clip_config(), captions=['a hero'] * 4)
  with pytest.raises(InputError, match='config.batch=1'):
    built(clip_config(batch=1))


def test_a_plain_clip_guides_on_any_schedule(clips, model):
  _, weights = model
  run, both = guided_on('linear', clips['plain'], weights)
  assert np.all(np.isfinite(predicted(run, both, asked(run, 'a hero', 'a hero')).x0))


def guided_on(schedule, where, weights):
  return with_guide_model(built(config(f'clip_guidance({where}, 5)', schedule=schedule)), weights)
