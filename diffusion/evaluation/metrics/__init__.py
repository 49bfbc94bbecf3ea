"""Sample quality: features of images, distances between sets of features, and the record of an evaluation."""
import functools

from diffusion.evaluation.metrics import pretrained_features, trained_features
from diffusion.setup import specs


def _without_data(make):
  """Adapts a function that makes an Extractor to return (data, mesh) -> Extractor.

  So its file is read when the extractor is needed, not when the config is checked.
  """
  @functools.wraps(make)
  def made(*args, **kwargs):
    return lambda data, mesh: make(*args, **kwargs)
  return made


FEATURES = {'evaluate.features': dict(
  own=trained_features.own,
  inception=_without_data(pretrained_features.inception),
  dinov2=_without_data(pretrained_features.dinov2),
  clip=_without_data(pretrained_features.clip))}


def make_features(config):
  """(data, mesh) -> Extractor, as config.evaluate.features says; raises InputError for an unknown name or argument."""
  return specs.resolve(FEATURES, 'evaluate.features', config.evaluate.features)
