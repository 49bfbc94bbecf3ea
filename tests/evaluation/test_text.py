"""The judge, and samples that follow their captions, half of them, or none: real sprites under other captions."""
import jax
import numpy as np
from PIL import Image
import pytest

from diffusion import commands
from diffusion.data import sources, sprites
from diffusion.data.dataset import take
from diffusion.evaluation import text
from diffusion.evaluation.metrics import judge as judges, trained_features
from diffusion.evaluation.metrics.record import share
from diffusion.generation import sampling
from diffusion.nets.cnn import PlaceCnn
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from experiments.image_run import image_run, weights_of

METRICS = ('caption_class', 'caption_kind', 'caption_colour', 'caption_second', 'caption_gap')


class Small(PlaceCnn):
  channels: int = 16


@pytest.fixture(scope='module')
def world(cache_dir):
  """(Source, Judge) of a few sprites."""
  patch = pytest.MonkeyPatch()
  patch.setenv('DIFFUSION_CACHE', str(cache_dir))
  patch.setattr(trained_features, 'BATCH', 64)
  patch.setattr(judges, 'PlaceCnn', Small)
  source = sources.sprites(size=16, n=3000, heldout=800)
  yield source, judges.judge(source, sharding.make_mesh(devices=jax.devices()[:1]), 300)
  patch.undo()


def scored(world, images, index):
  """The scores of images under the captions of held-out examples, against the other held-out examples."""
  source, judge = world
  asked, rest = take(source.heldout, index), take(source.heldout, slice(400, None))
  return text.scores(judge, images, judges.said(asked), rest.arrays['images'], judges.said(rest))


def test_the_judge_reads_held_out_sprites(world):
  source, judge = world
  assert judge.accuracy['class'].value > .9 and judge.accuracy['kind'].value > .7  # by chance .17 and .02
  assert list(judge.values)[0] == 'class' and len(judge.values['class']) == 6 and len(judge.values['kind']) == 60
  assert {'colour', 'second_colour', 'outfit', 'item', 'hat', 'hair'} < set(judge.values)
  assert not {'skin', 'trim', 'boots', 'trousers', 'gem', 'variant'} & set(judge.values)  # never named
  spoken = np.array(['hat' in said for said in judges.said(source.heldout)])
  assert judge.accuracy['hat'].n == spoken.sum() < 400  # only of those whose caption names one
  right = judge.predict(source.heldout.arrays['images'])[:, 0] == [
    judge.values['class'].index(sprites.CLASSES[label]) for label in source.heldout.arrays['labels']]
  assert share(int(right.sum()), 800) == judge.accuracy['class']


@pytest.mark.parametrize('follow', [1., .5, 0.])
def test_the_scores_are_the_share_of_samples_that_follow_their_captions(world, follow):
  """The samples are real sprites, of the caption or of another one of the held-out examples."""
  index, own = np.arange(400), np.random.default_rng(0).random(400) < follow
  shown = np.where(own, index, (index + 199) % 400)
  found, details = scored(world, world[0].heldout.arrays['images'][shown], index)
  for name in ('caption_kind', 'caption_colour', 'caption_second'):
    assert abs(found[name].value - own.mean()) < 3.5 * found[name].error + .02, (name, found[name])
    assert found[name].error < .15
  assert abs(found['caption_gap'].value) < 3.5 * found['caption_gap'].error
  assert found['caption_class'].value == pytest.approx(own.mean() + (1 - own.mean()) / 6, abs=.08)
  counts = [np.mean([head in said for said in judges.said(take(world[0].heldout, index))]) for head in details['heads']]
  assert [head['number'] / 400 for head in details['heads'].values()] == pytest.approx(counts)


def test_the_gap_is_how_much_better_captions_of_training_examples_do(world):
  """Every second sample, which is of a training caption, is right; of the others one in four is not."""
  index = np.arange(400)
  wrong = index % 8 == 0
  found, details = scored(world, world[0].heldout.arrays['images'][np.where(wrong, (index + 199) % 400, index)], index)
  assert abs(found['caption_gap'].value - .25) < 3.5 * found['caption_gap'].error < .25
  assert details['captions']['training'] > details['captions']['heldout']


def test_entries_of_two_sides_take_turns():
  one, two = dict(a=np.arange(0, 10, 2)), dict(a=np.arange(1, 9, 2))
  np.testing.assert_array_equal(text.in_turn(one, two)['a'], np.arange(9))
  np.testing.assert_array_equal(text.in_turn(one['a'][:4], two['a']), np.arange(8))


def pictured(source, shift=0, **changes):
  """An Experiment whose conditions are the pictures of the examples, or of those `shift` further; see `drawn`."""
  def batch(side, index):
    return dict(images=side.arrays['images'][(index + shift) % len(side.arrays['images'])])
  run = image_run(tiny(default()), (16, 16, 3), sprites.CLASSES)
  return run._replace(task=run.task._replace(
    takes=('prompt',), evaluators=('loss', 'text'), batch=batch,
    encode=lambda frozen, key, batch: (None, batch['images']), **changes))


def drawn(run, weights, cond, seed, lost=None):
  return np.asarray(cond)


def test_an_evaluation_asks_for_held_out_and_training_captions_in_turn_and_writes_a_page(world, tmp_path, monkeypatch):
  judge, new = world[1], sources.sprites(size=16, n=400, heldout=0, seed=5).train  # the judge has not seen them
  source = world[0]._replace(train=new)
  monkeypatch.setattr(text, 'draw', drawn)
  monkeypatch.setattr(text, 'judge', lambda data, mesh: judge)
  run, seen = pictured(source), []
  run.config.evaluate.num_samples = 301
  monkeypatch.setattr(text, 'page', lambda judge, images, *rest: seen.append(images) or page(judge, images, *rest))
  measured = text.EVALUATOR.measure(run, Weights({}), source, tmp_path, lambda *_: None)
  assert set(measured.metrics) == set(METRICS) == set(measured.protocol) and not text.needs(run, source)
  for name, truth in zip(METRICS[1:], (1, 1, 1, 0)):  # as real ones: they are real
    found = measured.metrics[name]
    assert abs(found.value - truth) < 3.5 * found.error < .5, (name, found)
  assert abs(measured.heldout['caption_class'].value - measured.metrics['caption_class'].value) < .03
  known = {image.tobytes() for image in source.train.arrays['images']}
  assert [image.tobytes() in known for image in seen[0]] == [False, True] * (text.SHOWN // 2)
  with Image.open(tmp_path / 'captions.png') as sheet:
    assert sheet.size[0] < 1200 and sheet.size[1] > 16 * 64
  run.config.evaluate.num_samples = 60
  text.EVALUATOR.measure(run, Weights({}), source, tmp_path, lambda *_: None)
  np.testing.assert_array_equal(*seen)  # sample k does not depend on the number


page = text.page


def test_a_page_shows_what_is_right_in_green_and_what_is_wrong_in_red_with_what_is_seen(world):
  source, judge = world
  values = ('cat', 'dog', 'fish')
  assert text.verdict_of(values, 1, 1) == ('dog', 'green') and text.verdict_of(values, 2, 0) == ('cat (fish?)', 'red')
  texts, captions = judges.said(source.heldout), source.heldout.arrays['captions'].tolist()
  shown = lambda first: np.asarray(page(judge, source.heldout.arrays['images'][:8], texts[first:first + 8],
                                        captions[first:first + 8], ''))
  reds = [np.sum((sheet == (255, 0, 0)).all(-1)) for sheet in (shown(0), shown(1))]
  assert reds[1] > 2 * reds[0]


def test_an_alarm_is_raised_from_a_quarter_of_the_training_on_where_captions_are_ignored(world, monkeypatch):
  source, judge = world
  monkeypatch.setattr(text, 'draw', drawn)
  monkeypatch.setattr(text, 'judge', lambda data, mesh: judge)
  for shift, alarms in ((0, 0), (199, 2)):
    run, lines = pictured(source, shift), []
    measure = text.watch(run, source, lambda *line: lines.append(line))
    quarter = run.plan.steps // 4
    early, *late = (measure(step, Weights({})) for step in (quarter - 1, quarter, run.plan.steps))
    assert not early and len(lines) == alarms
    assert all((values['caption_class_score'] < .4) == bool(alarms) for values in late)
    assert all('do not follow their captions' in line and 'config.guide' in line for _, line in lines)
  assert not text.watched(run, source)  # the judge has to be trained, and nobody asked for an evaluation
  run.config.evaluate.at_end = True
  assert text.watched(run, source) and not text.watched(run._replace(task=run.task._replace(evaluators=())), source)


def test_training_judges_samples_every_quarter_or_as_often_as_other_curves(world, monkeypatch):
  source, judge = world
  monkeypatch.setattr(text, 'judge', lambda data, mesh: judge)
  run = pictured(source)
  run.config.evaluate.at_end = True
  plain = run._replace(task=run.task._replace(evaluators=('loss',)))
  assert len(commands.measures(run, None, source)) == len(commands.measures(plain, None, source)) + 1
  assert commands.measures(run, None, source)[-1][0] == run.config.steps / 4
  run.config.evaluate.every = 3
  monkeypatch.setattr(commands, 'curve', lambda *_: None)
  assert commands.measures(run, None, source)[-1][0] == 3


def test_samples_that_are_not_finite_give_no_point(world, monkeypatch):
  source, judge = world
  monkeypatch.setattr(text, 'judge', lambda data, mesh: judge)
  monkeypatch.setattr(text, 'draw', lambda run, weights, cond, seed, lost: lost.append(3) or np.asarray(cond))
  assert text.make_curve(pictured(source), source)(Weights({})) == {}


def test_samples_are_those_of_the_sampler(world):
  run = image_run(tiny(default()), (16, 16, 3), sprites.CLASSES)
  weights, cond = weights_of(run), np.eye(6, dtype=np.float32)[[3, 1, 2]]
  run.config.sample.batch = 2
  expected = sampling.make_draw(run, 5, 3)(weights, np.arange(3), cond)[0]['images'].astype(int)
  np.testing.assert_allclose(text.draw(run, weights, cond, 5), expected, atol=1)  # rounded in batches of 2 and of 3


def test_what_cannot_be_judged_has_its_reason(world):
  source, _ = world
  run, plain = pictured(source), image_run(tiny(default()), (16, 16, 3), sprites.CLASSES)
  without = lambda name: source._replace(train=source.train._replace(
    arrays={key: column for key, column in source.train.arrays.items() if key != name}))
  for reason, made, data in (
      ('takes no prompt', plain, source), ('no captions', run, without('captions')),
      ('what the captions of these data say', run, without('attributes')),
      ('at least 16 training images, and there are 5', run, source._replace(train=take(source.train, slice(5)))),
      ('no held-out', run, source._replace(heldout=take(source.heldout, slice(0)))),
      ('not images', pictured(source, gives='texts'), source)):
    assert reason in text.needs(made, data) and not text.watched(made, data)


def test_the_same_data_gives_the_same_judge_from_the_cache_and_other_captions_another(world):
  source, judge = world
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  assert judges.judge(source, mesh, 300).digest == judge.digest
  other = source.train.arrays | dict(attributes=source.train.arrays['attributes'].copy())
  other['attributes'][0] = other['attributes'][np.flatnonzero(other['labels'] == other['labels'][0])[1]]
  assert judges.judge(source, mesh, 2).digest != judges.judge(
    source._replace(train=source.train._replace(arrays=other)), mesh, 2).digest
