"""Recall, zero-shot classes and CLIP scores, of models whose vectors are known."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import vonmises

from diffusion.core import schedules
from diffusion.data import sources
from diffusion.data.arrays import image_dataset
from diffusion.data.dataset import Source
from diffusion.errors import InputError
from diffusion.evaluation import clip_score, retrieval, zero_shot
from diffusion.objectives.base import Model
from diffusion.setup.choices import make
from diffusion.system import sharding
from diffusion.training.open_model import Loaded

RNG = np.random.default_rng(0)
COLOURS = dict(red=(255, 0, 0), green=(0, 255, 0), blue=(0, 0, 255), white=(255, 255, 255))


def test_ranks_are_those_of_sorting_and_ties_are_lost():
  queries, keys = RNG.normal(size=(2, 40, 5))
  same = np.array([0, 0, 0, *range(1, 38)])
  for i, rank in enumerate(retrieval.ranks(queries, keys, same)):
    order = np.argsort(-(keys @ queries[i]))
    assert rank == next(place for place, j in enumerate(order) if same[j] == same[i])
  one = np.ones((6, 3))
  assert retrieval.ranks(one, one, np.arange(6)).tolist() == [5] * 6
  assert retrieval.ranks(one, one, np.zeros(6, int)).tolist() == [0] * 6


def test_recall_counts_both_ways_and_chance_is_k_of_n():
  axes = np.eye(30)
  turned = np.roll(axes, 1, 0)  # the caption of image i is that of image i + 1
  found = retrieval.recalls(axes, axes, np.arange(30))
  assert {name: estimate.value for name, estimate in found.items()} == dict(
    recall_text_1=1, recall_text_5=1, recall_image_1=1, recall_image_5=1)
  assert retrieval.recalls(axes, turned, np.arange(30))['recall_text_1'].value == 0
  half = np.where(np.arange(30)[:, None] < 15, axes, turned)
  found = retrieval.recalls(half, axes, np.arange(30))
  assert found['recall_text_1'].value == .5 and .3 < found['recall_text_1'].low < .5 < found['recall_text_1'].high < .7
  images, texts = RNG.normal(size=(2, 500, 20))
  found = retrieval.recalls(images, texts, np.arange(500))
  assert found['recall_image_5'].low < 5 / 500 < found['recall_image_5'].high


def test_a_level_is_the_nearest_in_log_snr():
  for schedule in (schedules.cosine(T=1000), schedules.cosine(T=None)):
    for logsnr in (-6., 0., 4.):
      level = retrieval.level_at(schedule, logsnr)
      assert float(level.logsnr) == pytest.approx(logsnr, abs=.05) and level.alpha.shape == ()


# ---- models whose vectors are known: the mean colour of an image, the sum of the colours that a text names
def world():
  images = np.stack([np.broadcast_to(np.uint8(colour), (8, 8, 3)) for colour in COLOURS.values()] * 5)
  captions = [f'a {name} thing' for name in COLOURS] * 5
  data = image_dataset(images, np.arange(20, dtype=np.int32) % 4, tuple(COLOURS), captions)
  task = make('task', 'pairs(length=6)', data=data)
  return Source(*[task.prepare((), data)] * 2), task


def known(task, named=None, config=None, heard=COLOURS, **more):
  """An Experiment as far as evaluators look at it."""
  ids = {name: int(task.ask(dict(prompt=[name]), np.arange(1), 0).cond['tokens'][0, 1]) for name in heard}
  table = np.zeros((task.facts['tokens']['size'], 3), np.float32)
  for name, colour in heard.items():
    table[ids[name]] = np.array(colour) / 255 * 2 - 1
  unit = lambda a: a / jnp.maximum(jnp.linalg.norm(a, axis=-1, keepdims=True), 1e-6)
  heard_in = lambda cond: jnp.sum(jnp.asarray(table)[cond['tokens']] * (cond['weights'] > 0)[..., None], 1)
  model = Model(embed_image=lambda x, noise=None: unit(jnp.mean(x, (1, 2))),
                embed_text=lambda cond: unit(heard_in(cond)))
  return SimpleNamespace(
    task=task, mesh=sharding.make_mesh(devices=jax.devices()[:1]), model=lambda weights: model, schedule=None,
    encode=lambda frozen, key, batch: task.encode(frozen, key, batch), can=frozenset(['embed_image', 'embed_text']),
    objective=SimpleNamespace(name='contrastive'), config=config, **more)


WEIGHTS = SimpleNamespace(frozen={}, params=dict(logit_scale=np.float32(2)))
jax.tree_util.register_pytree_node(SimpleNamespace, lambda tree: ((), tree), lambda tree, _: tree)
OPTIONS = SimpleNamespace(evaluate=SimpleNamespace(seed=1, templates='a {} thing | {}', clip='judge', num_samples=20))


def test_a_model_that_knows_colours_finds_all_of_them():
  data, task = world()
  run = known(task, config=OPTIONS)
  assert not retrieval.needs(run, data)
  made = retrieval._measure(run, WEIGHTS, data, None, lambda label, text: None)
  assert made.metrics['recall_text_1'].value == made.metrics['recall_image_1'].value == 1  # equal captions are right
  made = zero_shot._measure(run, WEIGHTS, data, None, lambda label, text: None)
  assert made.metrics['zero_shot'].value == 1 and made.metrics['zero_shot'].n == 20
  swapped = known(task, config=OPTIONS, heard=COLOURS | dict(red=COLOURS['blue'], blue=COLOURS['red']))
  made = zero_shot._measure(swapped, WEIGHTS, data, None, lambda label, text: None)
  assert made.metrics['zero_shot'].value == .5
  assert made.details['zero_shot']['mistakes'] == {'red as blue': 5, 'blue as red': 5}


def test_texts_of_classes_are_unit_vectors_and_templates_have_one_place_for_a_name():
  _, task = world()
  found = zero_shot.class_vectors(known(task), WEIGHTS, ['red'], ['a {}', 'a blue {}'])
  np.testing.assert_allclose(found[0], [np.array([1, -1, -1]) / 3 ** .5, [0, -1, 0]], atol=1e-5)
  assert zero_shot.literal('a (red) \\') == r'a \(red\) \\'
  for text in ('a thing', '{} and {}', 'a {} | b'):
    with pytest.raises(InputError, match='not one {}'):
      zero_shot.templates_of(text)


def test_a_mixture_finds_the_class_by_bayes_rule_where_the_mean_of_its_texts_does_not():
  """Angles on a circle, von Mises around each text: class 0 at 80 and -80 degrees, class 1 at 30 and -20."""
  vector = lambda degrees: np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], -1)
  centres, angles, scale = np.array([[80., -80.], [30., -20.]]), np.array([0., 20., 50., 60., 85., -45., -60.]), 9.
  density = vonmises.pdf(np.deg2rad(angles)[:, None, None], scale, np.deg2rad(centres)).sum(2)
  found = zero_shot.found_by_mixture(vector(angles), vector(centres), scale)
  np.testing.assert_array_equal(found, density.argmax(1))
  np.testing.assert_array_equal(found, [1, 1, 1, 0, 0, 1, 0])
  # Means at 0 and 5 degrees: the nearest is decided at 2.5.
  np.testing.assert_array_equal(zero_shot.found_by_mean(vector(angles), vector(centres)), [0, 1, 1, 1, 1, 0, 0])


def test_sprites_are_classified_by_the_kinds_that_captions_name():
  source = sources.sprites(size=16, n=64, heldout=64)
  names, labels = zero_shot.classes_of(source.heldout)
  captions = source.heldout.arrays['captions']
  assert len(names) > 10 and np.any(labels < 0)
  assert all(names[label] in str(caption) for label, caption in zip(labels, captions) if label >= 0)


def test_the_score_is_100_cos_of_each_image_and_its_own_caption():
  data, task = world()
  judge = known(task), WEIGHTS, 1
  images = np.stack([np.broadcast_to(np.uint8(c), (8, 8, 3)) for c in COLOURS.values()])
  captions = ['a red thing', 'a (green) thing', 'a red thing', 'a white thing']
  found = clip_score.cosines(judge, images, zero_shot.text_vectors(*judge[:2], captions))
  unit = lambda c: (np.array(c) / 255 * 2 - 1) / 3 ** .5
  np.testing.assert_allclose(found, [1, 1, unit(COLOURS['blue']) @ unit(COLOURS['red']), 1], atol=1e-5)


def test_a_caption_that_the_judge_cannot_read_is_refused_before_samples_are_drawn(monkeypatch):
  data, task = world()
  strange = data.heldout._replace(arrays=data.heldout.arrays | dict(captions=np.array(['zebra'] * 20)))
  monkeypatch.setattr(clip_score, 'judge_of', lambda run: (Loaded(known(task), WEIGHTS, 1), 'hash'))
  monkeypatch.setattr(clip_score, 'draw', lambda *args: pytest.fail('samples were drawn'))
  options = SimpleNamespace(evaluate=SimpleNamespace(seed=1, clip='judge', num_samples=4))
  with pytest.raises(InputError, match='zebra.*no word that occurs'):
    clip_score._measure(known(task, config=options, frozen={}), WEIGHTS, Source(data.train, strange), None,
                        lambda label, text: None)


def test_a_judge_that_guided_is_refused_by_its_hash_and_one_of_another_size_too(monkeypatch):
  _, task = world()
  guide = lambda where: SimpleNamespace(scored='clip_guidance', model=where)
  other = SimpleNamespace(frozen={}, params=dict(a=np.zeros(3, np.float32)))
  stored = dict(judge=(known(task), WEIGHTS, 1), copy=(known(task), WEIGHTS, 9), other=(known(task), other, 1))
  stored['judge@5'] = stored['other']  # an earlier step: another hash
  monkeypatch.setattr(clip_score, 'open_at', lambda where, field='': Loaded(*stored[where]))
  run = lambda where: known(task, config=OPTIONS, guide=guide(where))
  for where in ('judge', 'copy', 'judge@5'):
    with pytest.raises(InputError, match='is the CLIP that guides') as error:
      clip_score.judge_of(run(where))
    assert '\n' not in str(error.value)
  assert clip_score.judge_of(run('other'))[1] == clip_score.hash_of(WEIGHTS) != clip_score.hash_of(other)
  small = run('other')
  small.task = task._replace(facts=task.facts | dict(shape=[16, 16, 3]))
  with pytest.raises(InputError, match=r'\[8, 8, 3\], and the samples are \[16, 16, 3\]'):
    clip_score.judge_of(small)
