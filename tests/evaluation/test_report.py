"""What --mode=evaluate is made of; the mode itself is in test_main.py."""
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import stats

from diffusion.core import schedules
from diffusion.core.gaussian import expand_to, from_x0
from diffusion.data.dataset import Dataset, Source
from diffusion.errors import InputError
from diffusion.evaluation import bits, report, sample_metrics
from diffusion.evaluation.metrics.extractor import Features
from diffusion.setup import build
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.tasks.image import image
from tests.exact import gaussian_denoiser

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (400, 8, 8, 1), np.uint8)
LABELS = (np.arange(400) % 10 == 0).astype(np.int32)  # one in ten is of class 1
DATA = Source(Dataset(PICTURES, LABELS, ('often', 'seldom')), Dataset(PICTURES[:30], LABELS[:30], ('often', 'seldom')))


def experiment(**changes):
  config = tiny(default())
  config.update(dict(net='unet(channels=16, multipliers=(1,), blocks=1, attention=())') | changes)
  return build.build(config, (8, 8, 1), DATA.train.classes, sharding.make_mesh(devices=jax.devices()[:1])), config


def test_samples_are_asked_for_in_the_proportions_of_the_data_unless_classes_are_named():
  run, config = experiment()
  cond, wanted = sample_metrics.conditions(run, config, DATA, 400)
  assert wanted.sum() == LABELS.sum() and cond.shape == (400, 2) and (cond.argmax(1) == wanted).all()
  few, _ = sample_metrics.conditions(run, config, DATA, 50)
  np.testing.assert_array_equal(few, cond[:50])  # sample k is asked for the same whatever the number
  assert len(sample_metrics.conditions(run, config, DATA, 1000)[0]) == 1000
  config.sample.classes = 'seldom'
  assert (sample_metrics.conditions(run, config, DATA, 7)[1] == 1).all()


def test_named_classes_come_equally_often_but_in_random_order_so_that_groups_of_samples_are_alike():
  run, config = experiment()
  config.sample.classes = 'often, seldom'
  cond, wanted = sample_metrics.conditions(run, config, DATA, 600)
  assert wanted.sum() == 300 and (cond.argmax(1) == wanted).all()
  groups = wanted.reshape(-1, 12).mean(0)
  assert np.all((groups > .2) & (groups < .8))  # in turn they would be 0 and 1
  np.testing.assert_array_equal(sample_metrics.conditions(run, config, DATA, 31)[1], wanted[:31])


def test_attributes_are_asked_for_as_in_the_data():
  run, config = experiment()
  vectors = RNG.random((400, 2)).astype(np.float32)
  data = DATA._replace(train=DATA.train._replace(labels=vectors))
  cond, wanted = sample_metrics.conditions(run, config, data, 50)
  np.testing.assert_array_equal(cond, wanted)
  assert {tuple(row) for row in wanted} <= {tuple(row) for row in vectors}


NOTHING = DATA.heldout._replace(images=PICTURES[:0], labels=LABELS[:0])


@pytest.mark.parametrize('heldout, changes, options, left', [
  (DATA.heldout, {}, {}, ['loss', 'samples', 'bound', 'ode']), (NOTHING, {}, {}, ['samples']),
  (DATA.heldout, dict(self_condition=True), {}, ['loss', 'samples'])])
def test_what_a_model_or_its_data_cannot_give_is_left_out_with_a_note(heldout, changes, options, left, monkeypatch):
  monkeypatch.setattr(report, 'make_features', lambda *_: lambda *_: None)  # no features are needed here
  run, config = experiment(**changes)
  what, notes = report.prepare(run, config, DATA._replace(heldout=heldout))
  assert what == left and bool(notes) == (left != ['loss', 'samples', 'bound', 'ode'])


@pytest.mark.parametrize('heldout, field, value, words', [
  (NOTHING, 'evaluate.parts', 'loss, bound', 'nothing is left'), (DATA.heldout._replace(images=PICTURES[:5], labels=LABELS[:5]), 'evaluate.split',
  'heldout', 'at least 16'), (DATA.heldout, 'sample.class_mix', '.5 * often + .5 * seldom', 'cannot be compared'),
  (DATA.heldout, 'evaluate.statistics', '/absent.npz', 'expected an .npz')])
def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(heldout, field, value, words):
  run, config = experiment()
  part, name = field.split('.')
  config[part][name] = value
  with pytest.raises(InputError, match=words):
    report.prepare(run, config, DATA._replace(heldout=heldout))

def test_a_stream_is_seen_alike_however_it_is_cut_and_keeps_only_so_much():
  see = lambda images: Features(images.reshape(len(images), -1)[:, :5].astype(np.float32), None)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  whole, first = sample_metrics.extract_all(see, [PICTURES], mesh)
  cut, _ = sample_metrics.extract_all(see, np.split(PICTURES, [3, 100, 250]), mesh)
  for a, b in zip(whole.moments, cut.moments):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_array_equal(whole.points, cut.points)
  few, images = sample_metrics.extract_all(see, np.split(PICTURES, [3, 100, 250]), mesh, limit=120)
  assert all(a.base is None for a in (few.points, images))  # no view of all that was seen
  np.testing.assert_array_equal(few.points, whole.points[:120])
  np.testing.assert_array_equal(images, PICTURES[:120])
  assert few.moments.count.sum() == 400


def test_a_long_evaluation_says_how_far_it_is(capsys):
  batches = [(PICTURES[:100], None)] * 4
  assert sum(map(len, sample_metrics.with_progress(batches, 400, every=0.))) == 400
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 4 and lines[0].startswith('100/400 samples') and lines[-1] == '400/400 samples, 0:00 left'


def test_a_curve_is_flat_when_its_last_points_are_no_better_than_the_error():
  falling = [(i, 10. - i, .1) for i in range(8)]
  assert not sample_metrics.plateau(falling) and not sample_metrics.plateau(falling[:3])
  assert sample_metrics.plateau(falling + [(9, 3.1, .1), (10, 2.9, .1), (11, 3.2, .1)])
  assert sample_metrics.plateau([(i, 10. - i, 5.) for i in range(5)])  # nothing that can be told
  assert not sample_metrics.plateau([(0, 1., .1), (1, 5., .1), (2, 5., .1), (3, .2, .1)])


def test_guided_sampling_counts_its_network_calls_twice():
  for guide, calls in (('', 1), ('cfg(2)', 2)):
    run, config = experiment(sampler='ddim', grid='trailing(4)', guide=guide)
    told = report.subject(run, config, {}, 8, 'w', {})
    assert told['evaluations'] == 4 and told['network_calls'] == 4 * calls
  assert told['config']['sampler'] == 'ddim' and told['step'] == 8


@pytest.mark.parametrize('field, value, words', [
  ('parts', 'loss, likeness', 'unknown .likeness.'), ('parts', ' ', 'is empty'), ('num_samples', 3, 'at least 16'), ('split', 'test', "'train' or 'heldout'"),
  ('every', -1, 'at least 0'), ('likelihood_samples', 0, 'at least 1')])
def test_options_that_make_no_sense_are_refused(field, value, words):
  config = default()
  config.evaluate[field] = value
  with pytest.raises(InputError, match=words):
    report.check(config)


# ---- likelihood, of Gaussian pixels under the exact denoiser
STD = 20.
PIXELS = np.clip(np.rint(RNG.normal(127.5, STD, (40, 8, 8, 1))), 0, 255).astype(np.uint8)


def likelihood(measure, schedule, number=40, cut=True):
  run = SimpleNamespace(mesh=sharding.make_mesh(devices=jax.devices()[:1]), schedule=schedule, classes=(), self_condition=False, task=image(), shape=(8, 8, 1),
                        plain=lambda params, cond: gaussian_denoiser(0., STD / 127.5))
  config = default()
  config.evaluate.likelihood_samples = number
  pixels = Dataset(PIXELS, np.zeros(40, np.int32))
  return measure(run, config, {}, Source(pixels, pixels), *([bits.chain_start(run, config, {}, pixels)] if cut else []))


def exact():
  normal = stats.norm(127.5, STD)
  values = PIXELS.astype(float)
  return -np.log2(normal.cdf(values + .5) - normal.cdf(values - .5)).mean()


@pytest.mark.parametrize('schedule, small', [(schedules.cosine(), 0), (schedules.flow(), 64)], ids=['table', 'curve'])
def test_both_likelihoods_of_gaussian_pixels_are_what_they_are_known_to_be(schedule, small, monkeypatch):
  monkeypatch.setattr(bits, 'SMALL', small)  # by random probes, and by the exact trace
  known = exact()
  bound, facts, curve = likelihood(bits.by_bound, schedule)
  assert bound.value == pytest.approx(known, abs=3 * bound.error + .03) and bound.value > known - 3 * bound.error
  assert sum(facts[name] for name in ('prior', 'diffusion', 'decoder')) == pytest.approx(bound.value, rel=1e-4)
  assert curve['logsnr'].shape == curve['rate'].shape and curve['rate'].shape[1] == 40
  ode, facts = likelihood(bits.by_ode, schedule)
  assert ode.value == pytest.approx(known, abs=3 * ode.error + .02)
  assert 'uniform noise of one of 256 steps' in facts['dequantisation'] and facts['trace'].startswith('exact' if small else 'Hutchinson')


def test_the_likelihood_of_a_picture_does_not_depend_on_how_many_there_are():
  few, many = (likelihood(lambda *a: bits._each(*a[:3], a[3].heldout, lambda keys, denoise, x0: dict(x=x0.mean((1, 2, 3)) + denoise(x0, NOISE).x0.mean((1, 2, 3))), 'test'),
                          schedules.cosine(), number, cut=False) for number in (5, 37))
  np.testing.assert_allclose(few['x'], many['x'][:5], rtol=1e-6)
  assert many['x'].shape == (37,)


NOISE = schedules.cosine(None)(np.float64(.3))


def test_levels_that_a_model_cannot_follow_are_left_to_the_decoder():
  good = gaussian_denoiser(0., STD / 127.5)
  def poor(x, noise):  # never nearer than .05 to the truth
    x0 = good(x, noise).x0 + .05 * np.sign(np.sin(np.arange(64.))).reshape(8, 8, 1)
    return from_x0(expand_to(noise, x), x, x0)
  run = SimpleNamespace(mesh=sharding.make_mesh(devices=jax.devices()[:1]), schedule=schedules.cosine(), classes=(), self_condition=False, task=image(), shape=(8, 8, 1),
                        plain=lambda params, cond: poor)
  pixels = Dataset(PIXELS, np.zeros(40, np.int32))
  config, data = default(), Source(pixels, pixels)
  found = bits.chain_start(run, config, {}, pixels)
  everything = found._replace(schedule=schedules.cosine(), variance='small', logsnr=10.)
  here, all_levels = (bits.by_bound(run, config, {}, data, which)[0] for which in (found, everything))
  assert here.value == pytest.approx(exact(), abs=.15)  # for independent pixels the decoder alone knows all there is to know
  assert all_levels.value > 2 * here.value
