"""What --mode=evaluate is made of; the mode itself is in test_evaluate_command.py."""
from types import SimpleNamespace

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion.core import schedules
from diffusion.core.gaussian import expand_to, from_x0, Pred
from diffusion.data.arrays import image_dataset
from diffusion.data.dataset import Source, take
from diffusion.errors import InputError
from diffusion.evaluation import bits, report, sample_metrics
from diffusion.evaluation.base import Evaluator, Measured
from diffusion.evaluation.metrics.extractor import Features
from diffusion.evaluation.metrics.record import Estimate
from diffusion.setup.build import Weights
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.tasks.image import image
from tests.exact import gaussian_denoiser
from experiments.image_run import image_run, weights_of

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (400, 8, 8, 1), np.uint8)
LABELS = (np.arange(400) % 10 == 0).astype(np.int32)  # one in ten is of class 1
TRAIN = image_dataset(IMAGES, LABELS, ('often', 'seldom'))
DATA = Source(TRAIN, take(TRAIN, slice(30)))


def experiment(**changes):
  config = tiny(default())
  config.update(dict(net='unet(channels=16, multipliers=(1,), blocks=1, attention=())') | changes)
  return image_run(config, (8, 8, 1), ('often', 'seldom'))


def test_conditions_have_the_proportions_of_the_data_unless_classes_are_named():
  run = experiment()
  cond, labels = sample_metrics.conditions(run, DATA, 400)
  assert labels.sum() == LABELS.sum() and cond.shape == (400, 2) and (cond.argmax(1) == labels).all()
  few, _ = sample_metrics.conditions(run, DATA, 50)
  np.testing.assert_array_equal(few, cond[:50])  # the same for sample k whatever the number
  assert len(sample_metrics.conditions(run, DATA, 1000)[0]) == 1000
  run.config.sample.classes = 'seldom'
  assert (sample_metrics.conditions(run, DATA, 7)[1] == 1).all()


def test_named_classes_come_equally_often_in_random_order():
  run = experiment()
  run.config.sample.classes = 'often, seldom'
  cond, labels = sample_metrics.conditions(run, DATA, 600)
  assert labels.sum() == 300 and (cond.argmax(1) == labels).all()
  groups = labels.reshape(-1, 12).mean(0)
  assert np.all((groups > .2) & (groups < .8))  # in turn they would be 0 and 1
  np.testing.assert_array_equal(sample_metrics.conditions(run, DATA, 31)[1], labels[:31])


def test_what_sample_ask_names_is_measured_as_what_sample_classes_names():
  run = experiment()
  run.config.sample.ask = 'classes: seldom'
  assert (sample_metrics.conditions(run, DATA, 7)[1] == 1).all()
  run.config.sample.ask = 'classes: none'
  cond, labels = sample_metrics.conditions(run, DATA, 7)
  assert labels is None and not cond.any()
  run.config.sample.ask, run.config.sample.classes = 'classes: seldom', 'often'
  with pytest.raises(InputError, match='both ask for classes'):
    sample_metrics.conditions(run, DATA, 7)
  run.config.sample.ask, run.config.sample.classes = 'class_mix: often', ''
  with pytest.raises(InputError, match='no mixes'):
    report.prepare(run, DATA)


def test_attributes_are_those_of_the_data():
  run = experiment()
  vectors = RNG.random((400, 2)).astype(np.float32)
  data = DATA._replace(train=image_dataset(IMAGES, vectors, ('often', 'seldom')))
  cond, labels = sample_metrics.conditions(run, data, 50)
  np.testing.assert_array_equal(cond, labels)
  assert {tuple(row) for row in labels} <= {tuple(row) for row in vectors}


NO_IMAGES = take(TRAIN, slice(0))


@pytest.mark.parametrize('heldout, changes, left', [
  (DATA.heldout, {}, ['loss', 'samples', 'bound', 'ode']), (NO_IMAGES, {}, ['samples']),
  (DATA.heldout, dict(self_condition=True), ['loss', 'samples'])])
def test_parts_that_the_model_or_its_data_do_not_allow_are_left_out_with_a_note(heldout, changes, left, monkeypatch):
  monkeypatch.setattr(sample_metrics, 'make_features', lambda *_: lambda *_: None)  # no features are needed here
  run = experiment(**changes)
  parts, notes = report.prepare(run, DATA._replace(heldout=heldout))
  assert parts == left and bool(notes) == (left != ['loss', 'samples', 'bound', 'ode'])


@pytest.mark.parametrize('heldout, field, value, words', [
  (NO_IMAGES, 'evaluate.parts', 'loss, bound',
   r"config\.evaluate\.parts='loss, bound': loss, bound left out: .*no held-out examples"),
  (take(TRAIN, slice(5)), 'evaluate.split', 'heldout',
   r"config\.evaluate\.split='heldout' .*at least 16 .* 5"),
  (DATA.heldout, 'sample.class_mix', '.5 * often + .5 * seldom', r"config\.sample\.class_mix='\.5 \* often"),
  (DATA.heldout, 'evaluate.statistics', '/absent.npz', '/absent.npz.* expected an .npz')])
def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(heldout, field, value, words):
  run = experiment()
  part, name = field.split('.')
  run.config[part][name] = value
  with pytest.raises(InputError, match=words):
    report.prepare(run, DATA._replace(heldout=heldout))


def test_few_training_images_leave_the_samples_out_before_any_is_drawn(monkeypatch):
  monkeypatch.setattr(sample_metrics, 'make_features', lambda *_: lambda *_: None)
  parts, notes = report.prepare(experiment(), DATA._replace(train=take(TRAIN, slice(2))))
  assert 'samples' not in parts and 'at least 16 training images, and there are 2' in notes[0]


def test_what_was_measured_is_kept_when_an_evaluator_fails_or_gives_no_number(tmp_path, monkeypatch):
  number = lambda value: lambda *_: Measured(dict(a_distance=Estimate(value, 1., 0., 1., 4)), {})
  def broken(*_):
    raise InputError('no such thing')
  fakes = dict(loss=number(.5), bound=broken, ode=number(np.inf))
  evaluators = {name: Evaluator(lambda *_: '', measure) for name, measure in fakes.items()}
  monkeypatch.setattr(report, 'EVALUATORS', evaluators)
  run = experiment(guide='')
  run.config.evaluate.parts = 'loss, bound, ode'
  data = DATA._replace(notes=('a note on the data',))
  with pytest.raises(InputError, match='bound: no such thing; ode: a_distance is not finite'):
    report.evaluate(run, Weights({}), 3, data, epath.Path(tmp_path), {}, lambda *_: None)
  [folder] = (tmp_path / 'evaluations').iterdir()
  text = (folder / 'evaluation.md').read_text()
  assert 'a_distance' in text and 'no such thing' in text and 'a note on the data' in text
  assert not (folder / 'evaluation.json').exists()  # it would mark a complete evaluation


def test_the_features_of_a_stream_do_not_depend_on_its_batches_and_only_so_many_are_kept():
  extract = lambda images: Features(images.reshape(len(images), -1)[:, :5].astype(np.float32), None)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  whole, first = sample_metrics.extract_all(extract, [IMAGES], mesh)
  cut, _ = sample_metrics.extract_all(extract, np.split(IMAGES, [3, 100, 250]), mesh)
  for a, b in zip(whole.moments, cut.moments):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  np.testing.assert_array_equal(whole.points, cut.points)
  few, images = sample_metrics.extract_all(extract, np.split(IMAGES, [3, 100, 250]), mesh, limit=120)
  assert all(a.base is None for a in (few.points, images))  # no view of all that was seen
  np.testing.assert_array_equal(few.points, whole.points[:120])
  np.testing.assert_array_equal(images, IMAGES[:120])
  assert few.moments.count.sum() == 400


def test_a_long_evaluation_says_how_far_it_is(capsys):
  batches = [(dict(images=IMAGES[:100]), None)] * 4
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
    run = experiment(sampler='ddim', grid='trailing(4)', guide=guide)
    subject = report.subject(run, Weights({}), 8, 'w', {})
    assert subject['evaluations'] == 4 and subject['network_calls'] == 4 * calls
  assert subject['config']['sampler'] == 'ddim' and subject['step'] == 8
  adaptive = report.subject(experiment(sampler='adaptive'), Weights({}), 8, 'w', {})
  assert adaptive['evaluations'] is adaptive['network_calls'] is None  # each sample has its own


@pytest.mark.parametrize('field, value, words', [
  ('parts', 'loss, likeness', "='loss, likeness': unknown .likeness."), ('parts', 'fid', "='fid': unknown"),
  ('num_samples', 3, '=3: .*at least 16'), ('split', 'test', "='test': .*'train' or 'heldout'"),
  ('every', -1, '=-1: .*at least 0'), ('likelihood_samples', 0, '=0: .*at least 1')])
def test_options_out_of_range_are_refused(field, value, words):
  config = default()
  config.evaluate[field] = value
  with pytest.raises(InputError, match=rf'config\.evaluate\.{field}{words}'):
    report.check(config)


# ---- likelihood, of Gaussian pixels under the exact denoiser
STD = 20.
PIXELS = np.clip(np.rint(RNG.normal(127.5, STD, (40, 8, 8, 1))), 0, 255).astype(np.uint8)


def gaussian_run(schedule, denoise, number=64):
  """The fields of an Experiment that bits.py reads, of a model without classes."""
  config = default()
  config.evaluate.likelihood_samples = number
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  task = image(facts=dict(shape=[8, 8, 1]))
  return SimpleNamespace(config=config, mesh=mesh, schedule=schedule, task=task, shape=(8, 8, 1), encode=task.encode,
                         example=(np.zeros((1, 8, 8, 1), np.float32), None), plain=lambda weights, cond: denoise)


EXACT = gaussian_denoiser(0., STD / 127.5)
SOURCE = Source(*[image_dataset(PIXELS)] * 2)
NONE = Weights({})


def exact():
  normal = stats.norm(127.5, STD)
  values = PIXELS.astype(float)
  return -np.log2(normal.cdf(values + .5) - normal.cdf(values - .5)).mean()


@pytest.mark.parametrize('schedule, small', [(schedules.cosine(), 0), (schedules.flow(), 64)], ids=['table', 'curve'])
def test_both_likelihoods_of_gaussian_pixels_are_the_known_ones(schedule, small, monkeypatch):
  monkeypatch.setattr(bits, 'SMALL', small)  # by random probes, and by the exact trace
  known = exact()
  run = gaussian_run(schedule, EXACT)
  start = bits.chain_start(run, NONE, SOURCE.train)
  bound, facts, curve = bits.by_bound(run, NONE, SOURCE, start)
  assert bound.value == pytest.approx(known, abs=3 * bound.error + .03) and bound.value > known - 3 * bound.error
  assert sum(facts[name] for name in ('prior', 'diffusion', 'decoder')) == pytest.approx(bound.value, rel=1e-4)
  assert curve['logsnr'].shape == curve['rate'].shape and curve['rate'].shape[1] == 40
  ode, facts = bits.by_ode(run, NONE, SOURCE, start)
  assert ode.value == pytest.approx(known, abs=3 * ode.error + .02)
  assert 'uniform noise of one of 256 steps' in facts['dequantisation']
  assert facts['trace'].startswith('exact' if small else 'Hutchinson')


def test_a_model_that_knows_nothing_has_the_density_of_noise_where_its_chain_has_no_step():
  run = gaussian_run(schedules.cosine(), lambda x, noise: Pred(jnp.zeros_like(x), x / noise.sigma))
  noisiest = bits.ChainStart(run.schedule, 0., float(run.schedule.logsnr[-1]), None, None)
  ode, facts = bits.by_ode(run, NONE, SOURCE, noisiest)
  assert facts['sigma_max'] == pytest.approx(10 * facts['sigma_min'], rel=1e-4)
  # The field keeps eps = y / (sigma / alpha): data at sigma_min are read as noise of that size.
  x0 = PIXELS.astype(float) / 127.5 - 1
  known = -stats.norm(0, facts['sigma_min']).logpdf(x0).mean() / np.log(2) + np.log2(255 / 2)
  assert ode.value == pytest.approx(known, abs=.01)


def test_the_likelihood_of_an_image_does_not_depend_on_the_number_of_images():
  def measure(keys, denoise, x0):
    return dict(x=x0.mean((1, 2, 3)) + denoise(x0, NOISE).x0.mean((1, 2, 3)))
  few, many = (bits.per_image(gaussian_run(schedules.cosine(), EXACT, number), NONE, SOURCE.heldout, measure, 'test')
               for number in (5, 37))
  np.testing.assert_allclose(few['x'], many['x'][:5], rtol=1e-6)
  assert many['x'].shape == (37,)


NOISE = schedules.cosine(None)(np.float64(.3))


@pytest.mark.parametrize('variance, learned', [('fixed', False), ('learned', True)])
def test_a_learned_variance_shows_in_the_prediction(variance, learned):
  run = experiment(variance=variance)
  assert bits.learns_variance(run, jax.eval_shape(lambda: weights_of(run))) == learned


def test_levels_that_a_model_cannot_follow_are_left_to_the_decoder():
  def poor(x, noise):  # never nearer than .05 to the truth
    x0 = EXACT(x, noise).x0 + .05 * np.sign(np.sin(np.arange(64.))).reshape(8, 8, 1)
    return from_x0(expand_to(noise, x), x, x0)
  run = gaussian_run(schedules.cosine(), poor)
  start = bits.chain_start(run, NONE, SOURCE.train)
  everything = start._replace(schedule=schedules.cosine(), variance='small', logsnr=10.)
  bound, of_all_levels = (bits.by_bound(run, NONE, SOURCE, which)[0] for which in (start, everything))
  assert bound.value == pytest.approx(exact(), abs=.15)  # for independent pixels the decoder alone is enough
  assert of_all_levels.value > 2 * bound.value
