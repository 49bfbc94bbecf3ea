"""The task text_to_image: captions to tokens, requests to conditions, and what asks for nothing."""
import jax
import numpy as np
import pytest

from diffusion import text
from diffusion.data.arrays import image_dataset, to_unit
from diffusion.errors import InputError
from diffusion.setup.choices import make

CAPTIONS = ['a red dragon', 'a blue dragon with two eyes', 'a green hero', '']


@pytest.fixture(scope='module')
def data():
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
  return image_dataset(images, captions=CAPTIONS)


@pytest.fixture(scope='module')
def task(data):
  return make('task', 'text_to_image(length=8)', data=data)


def decoded(task, cond):
  """Texts of tokens by the task's own facts, without its tokenizer."""
  tokenizer = text.rebuild(task.facts['tokens'], task.fitted)
  return [tokenizer.decode(ids[:int((weights > 0).sum())]) for ids, weights in zip(cond['tokens'], cond['weights'])]


def test_a_batch_has_the_tokens_of_its_captions_and_padding_weighs_nothing(task, data):
  batch = task.batch(task.prepare((), data), np.array([2, 0, 3]))
  x0, cond = task.encode((), None, batch)
  np.testing.assert_array_equal(x0, to_unit(data.arrays['images'][[2, 0, 3]]))
  assert decoded(task, jax.device_get(cond)) == ['a green hero', 'a red dragon', '']
  assert np.asarray(cond['weights']).sum(1).tolist() == [5, 5, 2]  # begin and end count


def test_nothing_asked_for_is_the_empty_caption(task, data):
  _, cond = task.encode((), None, task.batch(task.prepare((), data), np.arange(4)))
  empty = task.ask(dict(prompt=['']), np.arange(4), 0).cond
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(task.null(cond)), empty)
  assert task.ask(dict(prompt='none'), np.arange(1), 0).labels == ['']


def test_each_caption_of_an_image_is_chosen_as_often_and_none_that_it_lacks():
  captions = np.array([['a red dragon', 'a dragon', 'red'], ['a hero', '', '']], np.dtypes.StringDType())
  data = image_dataset(np.zeros((2, 4, 4, 3), np.uint8))
  data = data._replace(arrays=data.arrays | dict(captions=captions))
  task = make('task', 'text_to_image(length=6)', data=data)
  batch = task.batch(task.prepare((), data), np.repeat([0, 1], 600))
  found = decoded(task, jax.device_get(task.encode((), jax.random.key(0), batch)[1]))
  assert {name: found[:600].count(name) for name in set(found[:600])} == pytest.approx(
    {'a red dragon': 200, 'a dragon': 200, 'red': 200}, abs=60)
  assert set(found[600:]) == {'a hero'}


def test_prompts_take_turns_whatever_the_number(task):
  asked = task.ask(dict(prompt='a red dragon\n\na hero'), np.array([0, 1, 2, 5]), 0)
  assert asked.labels == ['a red dragon', 'a hero', 'a red dragon', 'a hero']
  assert decoded(task, asked.cond) == asked.labels
  assert task.ask({}, np.arange(3), 0).labels == CAPTIONS[:3]  # those of the data


def test_a_part_of_a_prompt_has_its_weight(task):
  cond = task.ask(dict(prompt='a (red:1.5) dragon'), np.arange(1), 0).cond
  assert cond['weights'][0].tolist() == [1, 1, 1.5, 1, 1, 0, 0, 0]
  np.testing.assert_array_equal(cond['tokens'], task.ask(dict(prompt='a red dragon'), np.arange(1), 0).cond['tokens'])


def test_a_mix_has_both_texts_and_the_null_of_it_their_shares(task):
  cond = task.ask(dict(prompt_mix='.25 * a red dragon + .75 * a hero'), np.arange(2), 0).cond
  assert cond['tokens'].shape == (2, 2, 8)
  assert decoded(task, jax.tree.map(lambda a: a[1], cond)) == ['a red dragon', 'a hero']
  assert cond['weights'][0].max(1).tolist() == [.25, .75]
  null = jax.device_get(task.null(cond))
  assert null['weights'][0].max(1).tolist() == [.25, .75] and null['weights'].sum() == 4
  ends = [task.ask(dict(prompt=prompt), np.arange(1), 0).cond for prompt in ('a red dragon', 'a hero')]
  way = task.between(*ends, np.array([0., .75, 1.]))
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[0]), way, cond)
  assert way['weights'][0, 1].max() == way['weights'][2, 0].max() == 0


def test_what_a_prompt_loses_is_said(task):
  notes = task.ask(dict(prompt='a zebra dragon'), np.arange(2), 0).notes
  assert len(notes) == 1 and 'zebra' in notes[0]
  notes = task.ask(dict(prompt='a red dragon with two eyes with two red eyes'), np.arange(1), 0).notes
  assert 'two red eyes' in notes[0] or 'eyes with two red eyes' in notes[0]


@pytest.mark.parametrize('request_, message', (
  (dict(prompt='zebra'), "no word that occurs in the training texts"),
  (dict(prompt='a', prompt_mix='a + b'), 'use one of them'),
  (dict(prompt_mix='-1 * a hero + 2 * a dragon'), 'negative='),
  (dict(prompt=[1]), 'expected a text, or a list of texts'),
  (dict(prompt='a (red:x) dragon'), 'no number'),
))
def test_bad_requests_are_refused(task, request_, message):
  with pytest.raises(InputError, match=message):
    task.ask(request_, np.arange(2), 0)


@pytest.mark.parametrize('spec, message', (
  ('text_to_image(tokens=letters)', "unknown 'letters'"),
  ('text_to_image(vocabulary=x.txt)', 'only tokens=clip has a vocabulary file'),
  ('text_to_image(tokens=clip, vocabulary=missing.txt)', 'missing.txt'),
))
def test_bad_tokenizers_are_refused(data, spec, message):
  with pytest.raises(InputError, match=message):
    make('task', spec, data=data)


def test_data_without_captions_are_refused():
  with pytest.raises(InputError, match='it needs the column captions'):
    make('task', 'text_to_image', data=image_dataset(np.zeros((2, 4, 4, 3), np.uint8)))


def test_a_checkpoint_and_a_model_to_start_from_keep_their_vocabulary(task):
  """Other captions give other ids; the weights belong to the first ones."""
  other = image_dataset(np.zeros((2, 8, 8, 3), np.uint8), captions=['a purple zebra', 'a dragon'])
  again = make('task', 'text_to_image(length=8)', facts=task.facts, fitted=task.fitted)
  started = make('task', 'text_to_image(length=8)', data=other, fitted=task.fitted)
  for made in (again, started):
    assert made.facts['tokens'] == task.facts['tokens']
    cond = made.ask(dict(prompt='a red dragon'), np.arange(1), 0).cond
    np.testing.assert_array_equal(cond['tokens'], task.ask(dict(prompt='a red dragon'), np.arange(1), 0).cond['tokens'])
  fresh = make('task', 'text_to_image(length=8)', data=other)
  assert fresh.facts['tokens'] != task.facts['tokens']
  batch = started.prepare((), other)
  assert decoded(task, started.encode((), None, started.batch(batch, np.arange(2)))[1])[1] == 'a dragon'
