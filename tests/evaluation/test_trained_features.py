"""Features trained on the data itself: they detect defects of images, and find copies."""
import jax
import numpy as np
import pytest

from diffusion.data import sources
from diffusion.data.arrays import image_dataset
from diffusion.errors import InputError
from diffusion.evaluation import sample_metrics
from diffusion.evaluation.metrics import frechet, measure, scores, trained_features
from diffusion.evaluation.metrics.features import extract_all, make_extract, reference
from diffusion.nets.cnn import Cnn
from diffusion.system import sharding


class Small(Cnn):
  channels: int = 16


@pytest.fixture(scope='module')
def world(cache_dir):
  """(extractor, see, source, Reference of its training images) for a few sprites."""
  patch = pytest.MonkeyPatch()
  patch.setenv('DIFFUSION_CACHE', str(cache_dir))
  patch.setattr(trained_features, 'BATCH', 48)
  patch.setattr(trained_features, 'Cnn', Small)
  source, mesh = sources.sprites(size=16, n=1500, heldout=300), sharding.make_mesh(devices=jax.devices()[:1])
  extractor = trained_features.own(250)(source.train, mesh)
  see = make_extract(extractor, mesh)
  yield extractor, see, source, reference(extractor, see, source.train.arrays['images'], mesh)
  patch.undo()


def distance(world, images):
  _, see, _, train = world
  features, _ = extract_all(see, [images], sharding.make_mesh(devices=jax.devices()[:1]))
  return frechet.fd_infinity(features.moments, train.moments)


def test_it_classifies_held_out_images(world):
  _, see, source, _ = world
  right = see(source.heldout.arrays['images']).logits.argmax(1) == source.heldout.arrays['labels']
  assert right.mean() > .8  # six classes: 0.17 by chance; the default network, larger and trained longer, has 0.998


def test_distances_grow_with_noise_blur_and_missing_classes_and_are_near_zero_for_held_out_images(world):
  images, labels = world[2].heldout.arrays['images'], world[2].heldout.arrays['labels']
  rng = np.random.default_rng(0)
  noises = (rng.normal(0, strength, images.shape) for strength in (10, 45, 120))
  noisy = [(images + noise).clip(0, 255).astype(np.uint8) for noise in noises]
  soft = images.astype(float)
  soft = (soft + np.roll(soft, 1, 1) + np.roll(soft, 1, 2) + np.roll(soft, (1, 1), (1, 2))) / 4
  same = distance(world, images)
  assert same.low < 1 and same.value < 2
  by_noise = [distance(world, x) for x in noisy]
  assert same.high < by_noise[1].low and by_noise[0].value < by_noise[1].value and by_noise[1].high < by_noise[2].low
  assert distance(world, soft.astype(np.uint8)).low > same.high
  assert distance(world, images[labels != 0]).low > same.high


def test_a_planted_copy_is_found_and_new_images_are_not(world, tmp_path):
  _, see, source, train = world
  new = sources.sprites(size=16, n=400, seed=5).train.arrays['images'][:100]
  fresh = {image.tobytes() for image in source.train.arrays['images']}
  new = np.stack([image for image in new if image.tobytes() not in fresh])
  planted = source.train.arrays['images'][[7, 123, 900]]
  close = np.clip(source.train.arrays['images'][[55]].astype(int) + 1, 0, 255).astype(np.uint8)
  images = np.concatenate([new[:40], planted, new[40:], close])
  where = [40, 41, 42]
  found = measure.copies(see(images).points, train, see(source.heldout.arrays['images']).points)
  np.testing.assert_array_equal(found.index[where], [7, 123, 900])
  np.testing.assert_allclose(found.distance[where], 0, atol=1e-5)
  assert (found.closer[where] <= measure.COPIED).all() and found.index[-1] == 55
  others = np.delete(np.arange(len(images)), [*where, len(images) - 1])
  assert (found.closer[others] > measure.COPIED).mean() > .93  # by definition 1 % of new images count as copies
  sample_metrics.panel(images, source.train.arrays['images'], found, tmp_path)
  assert (tmp_path / 'memorisation.png').exists()
  assert set(np.argsort(found.distance, kind='stable')[:3]) == set(where)  # they stand first on the panel


def test_the_same_data_gives_the_same_classifier_from_the_cache_and_other_data_another(world):
  extractor, _, source, _ = world
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  again = trained_features.own(250)(source.train, mesh)
  assert again.digest == extractor.digest
  assert trained_features.own(2)(source.train, mesh).digest != extractor.digest
  other = source.train._replace(arrays=source.train.arrays | dict(images=source.train.arrays['images'][:, ::-1]))
  assert trained_features.own(2)(other, mesh).digest != trained_features.own(2)(source.train, mesh).digest


def test_images_of_any_size_and_number_of_channels_without_classes_work(monkeypatch):
  monkeypatch.setattr(trained_features, 'BATCH', 4)
  images = np.random.default_rng(0).integers(0, 256, (40, 24, 70, 1), np.uint8)
  data = image_dataset(images)
  extractor = trained_features.own(2)(data, sharding.make_mesh(devices=jax.devices()[:1]))
  seen = jax.jit(extractor.apply)(extractor.params, images[:5])
  assert seen.points.shape == (5, extractor.size) and seen.logits is None and extractor.resize == 'linear 11x32'
  assert np.isfinite(seen.points).all()


def test_steps_are_checked():
  for steps in (0, -1, 1.5, True, 'many'):
    with pytest.raises(InputError, match=rf'own\(steps={steps!r}\)'):
      trained_features.own(steps)


def test_attributes_are_predicted_independently(monkeypatch):
  monkeypatch.setattr(trained_features, 'BATCH', 16)
  monkeypatch.setattr(trained_features, 'Cnn', Small)
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, (600, 2)).astype(np.float32)
  images = np.zeros((600, 8, 8, 1))
  # the first attribute brightens the upper half, the second the left half
  images[:, :4] += 150 * labels[:, :1, None, None]
  images[:, :, :4] += 90 * labels[:, 1:, None, None]
  data = image_dataset((images + rng.random(images.shape) * 10).astype(np.uint8), labels, ('up', 'left'))
  extractor = trained_features.own(80)(data, sharding.make_mesh(devices=jax.devices()[:1]))
  logits = jax.jit(extractor.apply)(extractor.params, data.arrays['images']).logits
  seen = scores.attribute_accuracy(logits, labels)
  assert seen.value > .8 and extractor.classes == ('up', 'left')
  assert scores.attribute_accuracy(logits, 1 - labels).value == pytest.approx(1 - seen.value)
