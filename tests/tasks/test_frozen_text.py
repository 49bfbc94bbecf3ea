"""Texts of a frozen encoder, of a CLIP that was trained here and of a folder: what it gives, and that it stays so."""
from functools import partial
import json
import shutil
import zipfile

from etils import epath
import jax
import numpy as np
import pytest

import diffusion
from diffusion import nets
from diffusion.errors import InputError
from diffusion.interop import clip, folder as folders, models
from diffusion.nets.pretrained.clip import ClipText
from diffusion.setup import build
from diffusion.setup.choices import make
from diffusion.system import tensors
from diffusion.tasks.frozen_text import open_encoder
from diffusion.tasks.published_texts import read_texts
from diffusion.training.loop import make_train_step
from diffusion.training.open_model import open_run, placed_frozen
from diffusion.training.state import make_state
from tests import frozen_clips
from tests.interop.test_pipelines import FIXTURES
from tests.test_latents import recipe

NET = 'with_text(unet(channels=8, multipliers=(1,), blocks=1, attention=(4,), patch=4), width=8, blocks=1, heads=1)'
RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def trained_here():
  """(Experiment, parameters) of a CLIP with random weights."""
  return frozen_clips.made()


@pytest.fixture(scope='module')
def data():
  return build.load_data(recipe('text_to_image')).train


@pytest.fixture(scope='module')
def task(trained_here, data):
  return make('task', "text_to_image(encoder='runs/clip')", data=data, open_model=frozen_clips.opens(*trained_here))


@pytest.fixture
def folder(tmp_path):
  """Of Stable Diffusion, with random weights."""
  with zipfile.ZipFile(FIXTURES / 'StableDiffusionPipeline.zip') as file:
    file.extractall(tmp_path / 'sd')
  return tmp_path / 'sd'


def nothing_here(where):
  raise InputError(f'{where} holds no checkpoint yet')


def ask(task, *prompts):
  return task.ask(dict(prompt=list(prompts)), np.arange(len(prompts)), 0).cond


def encoded(task, data, n):
  """The conditions of the first examples, as in training."""
  batch = task.batch(task.prepare(task.frozen, data), np.arange(n))
  return jax.device_get(jax.jit(lambda frozen, batch: task.encode(frozen, None, batch)[1])(task.frozen, batch))


# ---- what the encoder gives
def test_states_of_a_work_directory_are_those_of_its_text_tower(task, trained_here, data, tmp_path):
  """By another network, which reads the tower from a file of transformers; vectors are those of the CLIP."""
  run, params = trained_here
  cond = encoded(task, data, 6)
  file = tmp_path / 'model.safetensors'
  clip.save(file, params, 'hf_clip')
  tower = {name.removeprefix('text_model.'): a for name, a in tensors.read(str(file), '').tensors.items()
           if name.startswith('text_model.')}
  tokens = task.facts['tokens']
  there = ClipText(hidden_size=16, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, hidden_act='gelu',
                   vocab_size=tokens['size'], max_position_embeddings=tokens['length'])
  expected = jax.jit(there.apply)(dict(params=tower), cond['tokens']).last
  counted = cond['weights'] > 0
  np.testing.assert_allclose(cond['states'][counted], np.asarray(expected)[counted], atol=1e-5)
  texts = {name: cond[name] for name in ('tokens', 'weights')}
  vectors = jax.jit(lambda params: run.model(build.Weights(params)).embed_text(texts))(params)
  np.testing.assert_allclose(cond['pooled'], np.asarray(vectors) * 8 ** .5, atol=1e-5)


def test_states_of_a_folder_are_those_of_its_pipeline_with_its_files_apart_or_together(folder, data):
  """The pipeline lets tokens see padding, which has no effect: it is after them, and the tower is causal."""
  index = json.loads((folder / 'model_index.json').read_text())
  told, params = read_texts(str(folder), ('text_encoder',), index, 8)
  for file in (folder / 'tokenizer').iterdir():
    shutil.copy(file, folder / 'text_encoder')
  for place in (folder, folder / 'text_encoder'):
    task = make('task', f"text_to_image(encoder='{place}')", data=data, open_model=nothing_here)
    cond = ask(task, 'abc b', 'cad')
    for i, prompt in enumerate(('abc b', 'cad')):
      counted = cond['weights'][i] > 0
      np.testing.assert_allclose(cond['states'][i][counted], told.encoded(params, prompt)['context'][0][counted],
                                 atol=1e-6)
    end = int(counted.sum()) - 1  # the vector of a text is what its end is given, here scaled
    np.testing.assert_allclose(cond['pooled'][1] / np.linalg.norm(cond['pooled'][1]),
                               cond['states'][1][end] / np.linalg.norm(cond['states'][1][end]), atol=1e-6)


def test_transformers_gives_the_same_states(folder, data):
  torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
  task = make('task', f"text_to_image(encoder='{folder}')", data=data, open_model=nothing_here)
  theirs = transformers.CLIPTextModel.from_pretrained(folder / 'text_encoder')
  cond = ask(task, 'abc b', 'cad')
  with torch.no_grad():
    found = theirs(torch.tensor(cond['tokens']), attention_mask=torch.tensor(cond['weights'])).last_hidden_state
  counted = cond['weights'] > 0
  np.testing.assert_allclose(cond['states'][counted], found.numpy()[counted], atol=1e-5)


def test_padding_has_no_effect_however_long(trained_here, folder):
  clips = frozen_clips.opens(*trained_here)
  for where, L, size in (('runs/clip', 12, 50), (str(folder), 4, 500)):  # of 24 and of 9
    encoder = open_encoder(where, clips, {})
    whole = encoder.tokenizer.facts['length']
    tokens = RNG.integers(4, size, (3, whole)).astype(np.int32)
    tokens[:, L - 1:] = encoder.tokenizer.encode('').ids[1]  # the end
    mask = np.arange(whole) < L
    some = np.broadcast_to(mask, tokens.shape)
    other = np.where(mask, tokens, 7).astype(np.int32)
    read = partial(jax.jit(encoder.read), encoder.params)
    short = read(tokens[:, :L], some[:, :L])
    for found in (read(tokens, some), read(other, some)):
      np.testing.assert_allclose(found[0][:, :L], short[0], atol=1e-6)
      np.testing.assert_allclose(found[1], short[1], atol=1e-6)


# ---- what the network sees
@pytest.fixture(scope='module')
def out(task):
  """condition -> what a network with random weights gives for the same x and times."""
  tokens, example = task.facts['tokens'], ask(task, 'a hero')
  net = nets.make(make('net', NET, vocabulary=tokens['size'], length=tokens['length']))
  shapes = jax.eval_shape(lambda key: net.init(key, (2, 16, 16, 3), example), jax.random.key(0))
  params = jax.tree.map(lambda a: (RNG.normal(size=a.shape) * .3).astype(np.float32), shapes)
  assert 'above' in params and 'text' not in params  # no embeddings of tokens are trained
  x, time = RNG.normal(size=(2, 16, 16, 3)).astype(np.float32), np.array([10., 500.])
  apply = jax.jit(lambda params, cond: net.apply(params, x, time, net.prepare(params, cond)))
  return lambda cond: np.asarray(apply(params, cond))


def test_a_word_of_weight_0_is_absent_and_other_words_are_not(task, out):
  red, blue = (out(ask(task, f'a ({word}:0) dragon with two eyes', 'a hero')) for word in ('red', 'blue'))
  np.testing.assert_allclose(red, blue, atol=1e-6)
  red, blue = (out(ask(task, f'a {word} dragon with two eyes', 'a hero')) for word in ('red', 'blue'))
  assert np.abs(red - blue)[0].max() > 1e-3
  np.testing.assert_allclose(red[1], blue[1], atol=1e-6)
  double = out(ask(task, 'a (red:2) dragon with two eyes', 'a hero'))
  assert np.abs(double - red)[0].max() > 1e-3


def test_a_mix_is_each_text_at_its_ends_and_so_is_the_way_between_two(task, out):
  prompts = ('a red dragon', 'a green hero with a crown')
  each = [out(ask(task, prompt, prompt)) for prompt in prompts]
  ends = [ask(task, prompt) for prompt in prompts]
  way = task.between(*ends, np.array([0., 1.]))
  found = out(way)
  for i in (0, 1):
    np.testing.assert_allclose(found[i], each[i][i], atol=1e-5)
    mix = f'{1 - i} * {prompts[0]} + {i} * {prompts[1]}'
    np.testing.assert_allclose(out(task.ask(dict(prompt_mix=mix), np.arange(2), 0).cond), each[i], atol=1e-5)


def test_nothing_asked_for_is_the_empty_text_encoded(task, data):
  cond = encoded(task, data, 2)
  empty = ask(task, '', '')
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(task.null(cond)), empty)
  assert np.abs(empty['states'][:, :2]).min() > 0
  mix = task.ask(dict(prompt_mix='.25 * a red dragon + .75 * a hero'), np.arange(2), 0).cond
  null = jax.device_get(task.null(mix))
  assert jax.tree.map(np.shape, null) == jax.tree.map(np.shape, mix)
  np.testing.assert_array_equal(null['states'][:, 1], empty['states'])


# ---- training
def test_training_leaves_the_encoder_as_it_is_and_out_of_the_checkpoint(trained_here, tmp_path):
  """Two steps; what was trained opens again with the same encoder alone."""
  _, params = trained_here
  given = dict(text=params['text'])
  place, workdir = epath.Path(tmp_path / 'clip'), epath.Path(tmp_path / 'run')
  frozen_clips.write(place, *trained_here)
  config = recipe('text_to_image', net=NET, task=f"text_to_image(encoder='{place}')")
  run, checkpoints, meta, data = open_run(config, workdir, build.load_data(config))
  frozen, state, step = placed_frozen(run), make_state(run, jax.random.key(0)), make_train_step(run)
  before = jax.device_get(state.params)
  for i in range(2):
    batch = run.task.batch(data.train, np.arange(8 * i, 8 * i + 8))
    state, _ = step(state, batch, jax.random.key(i), frozen)
  assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, state.params))))
  jax.tree.map(np.testing.assert_array_equal, frozen['task'], given)
  checkpoints.save(2, state, meta)
  checkpoints.close()
  assert meta['hashes'] == dict(task=tensors.digest(given))
  assert given['text']['encoder']['tokens'].shape not in {a.shape for a in jax.tree.leaves(state)}
  jax.tree.map(np.testing.assert_array_equal, diffusion.load(workdir).weights.frozen['task'], given)
  place.rmtree()
  frozen_clips.write(place, *frozen_clips.made(seed=1))
  with pytest.raises(InputError, match="clip'.*: its hash is .*, and this model was trained with .*train anew"):
    diffusion.load(workdir)


# ---- what is refused
def refused(message, spec, data, open_model=nothing_here, **given):
  with pytest.raises(InputError, match=message) as error:
    make('task', spec, data=data, open_model=open_model, **given)
  assert '\n' not in str(error.value)


def test_what_is_no_encoder_is_refused(task, trained_here, data, folder, tmp_path):
  run, params = trained_here
  refused("encoder='nowhere': nowhere holds no checkpoint yet; expected the work directory of a CLIP",
          'text_to_image(encoder=nowhere)', data)
  without = frozen_clips.opens(run._replace(can=frozenset({'denoise'})), params)
  refused('has no text tower; expected the work directory of a CLIP', 'text_to_image(encoder=other)', data, without)
  refused('brings its own tokenizer; leave tokens', 'text_to_image(tokens=bytes, encoder=x)', data)
  refused('brings its own tokenizer; leave tokens', 'text_to_image(length=9, encoder=x)', data)
  other = dict(task.facts, tokens=task.facts['tokens'] | dict(vocabulary='0' * 32))
  refused('its tokenizer is .*, and this model was trained with .*give that encoder', 'text_to_image(encoder=x)', None,
          frozen_clips.opens(run, params), facts=other, fitted=task.fitted)
  spec = f"text_to_image(encoder='{folder}')"
  (folder / 'tokenizer').rename(folder / 'gone')
  refused('has no tokenizer_config.json: the encoder lacks its tokenizer', spec, data)
  (folder / 'gone').rename(folder / 'tokenizer')
  config = json.loads((folder / 'text_encoder' / 'config.json').read_text())
  for field in ('vocab_size', 'eos_token_id'):
    folders.write(folder / 'text_encoder', config | {field: 300}, {}, models.KINDS['CLIPTextModel'].stem)
    refused('the tokenizer of another encoder: it has 554 tokens', spec, data)
  folders.write(folder / 'text_encoder', dict(architectures=['CLIPModel']), {})
  refused("_class_name='CLIPModel': unknown .*CLIPTextModel", spec, data)
