"""Guidance as config.guide says it, such as 'cfg(2, lo=-6) | rescale(.3)': parsed once, before anything is traced.

The parts act from left to right. cfg, apg and autoguidance start from two predictions, so only the first part may be
one of them; the others transform the result of the part before, or the conditional prediction. '' is no guidance.
"""
from typing import Callable, NamedTuple

import numpy as np

from diffusion.core import gaussian, guidance
from diffusion.errors import InputError
from diffusion.setup import specs


class Part(NamedTuple):
  """One transform of a stack."""
  apply: Callable      # (guided, cond, null, log_prob) -> Denoise
  scale: float = 1.    # of a part that starts from two predictions; 1 is conditional
  negative: str = ''   # class in place of the null condition
  model: str = ''      # work directory of a second model, 'runs/x' or 'runs/x@600' of an earlier step


def _name(negative):
  """The name of a class, which may look like a number."""
  if isinstance(negative, bool) or not isinstance(negative, (str, int)):
    raise InputError(f'negative={negative!r}: expected the name of one class')
  return str(negative)


def cfg(scale=2., negative='', lo=-np.inf, hi=np.inf):
  """Classifier-free guidance, away from the null condition or from a class `negative`, where lo <= log-SNR <= hi."""
  return Part(lambda guided, cond, null, log_prob: guidance.cfg(cond, null, scale, lo, hi), scale, _name(negative))


def apg(scale=2., negative='', eta=0., norm=np.inf, lo=-np.inf, hi=np.inf):
  """Adaptive projected guidance."""
  return Part(lambda guided, cond, null, log_prob: guidance.apg(cond, null, scale, eta, norm, lo, hi), scale,
              _name(negative))


def autoguidance(model, scale=2., lo=-np.inf, hi=np.inf):
  """Away from a weaker model with the same condition, such as earlier weights (arXiv:2406.02507)."""
  return Part(lambda guided, cond, null, log_prob: guidance.cfg(cond, null, scale, lo, hi), scale, model=model)


def classifier(model, scale=1.):
  """Towards the class by a noisy classifier (arXiv:2105.05233); alone it guides the unconditional model."""
  return Part(lambda guided, cond, null, log_prob: guidance.classifier(guided, log_prob, scale), model=model)


def clip_guidance(model, scale=50.):
  """Towards the text by the cosine of a CLIP (see guidance.cosine); alone it guides the unconditional model."""
  def apply(guided, cond, null, log_prob):
    towards = guidance.classifier(guided, log_prob, scale, 'clip_guidance')  # refuses a scale that is none
    return towards if scale else guided
  return Part(apply, model=model)


def rescale(phi=.7):
  return Part(lambda guided, cond, null, log_prob: guidance.rescale(guided, cond, phi))


def interval(lo=-np.inf, hi=np.inf):
  return Part(lambda guided, cond, null, log_prob: guidance.interval(guided, cond, lo, hi))


def dynamic_threshold(percentile=.995):
  return Part(lambda guided, cond, null, log_prob: gaussian.dynamic_threshold(guided, percentile))


def clip(low=-1., high=1.):
  return Part(lambda guided, cond, null, log_prob: gaussian.clip(guided, low, high))


GUIDE = dict(cfg=cfg, apg=apg, autoguidance=autoguidance, classifier=classifier, clip_guidance=clip_guidance,
             rescale=rescale, interval=interval, dynamic_threshold=dynamic_threshold, clip=clip)
STARTS = ('cfg', 'apg', 'autoguidance')
SCORED = ('classifier', 'clip_guidance')  # by the gradient of what a second model says of x


class Guide(NamedTuple):
  """A parsed stack."""
  text: str
  names: tuple
  parts: tuple

  @property
  def start(self):
    """The part that starts from two predictions, or None."""
    return self.parts[0] if self.parts and self.names[0] in STARTS else None

  @property
  def doubles(self):
    """Whether it needs a second prediction of the network itself, with the null or a negative condition."""
    return bool(self.start and self.start.scale != 1 and not self.start.model)

  @property
  def scored(self):
    """The part that needs the log_prob of a second model: 'classifier', 'clip_guidance' or ''."""
    return next((name for name in self.names if name in SCORED), '')

  @property
  def model(self):
    """The work directory of the second model that it needs, or ''."""
    return next((part.model for part in self.parts if part.model), '')

  def stack(self, cond, null, log_prob=None):
    """The guided denoiser, from the conditional and the null one."""
    guided = cond
    for part in self.parts:
      guided = part.apply(guided, cond, null, log_prob)
    return guided


def parse(text):
  """The Guide that config.guide describes.

  Raises:
    InputError: an unknown part or argument, a value out of range, parts in an order that has no meaning.
  """
  pieces = [piece for piece in specs.split(text, '|') if piece]
  names = tuple(specs.parse(piece)[0] for piece in pieces)
  guide = Guide(text, names, tuple(specs.resolve(dict(guide=GUIDE), 'guide', piece) for piece in pieces))
  try:
    guide.stack(None, None)  # transforms refuse bad values when they are built
  except (InputError, TypeError) as error:
    raise InputError(f'config.guide={text!r}: {error}') from error
  for name, part in zip(names, guide.parts):
    if name in ('autoguidance', *SCORED) and not (isinstance(part.model, str) and part.model):
      raise InputError(f'config.guide={text!r}: {name} needs the work directory of a model, such as {name}(runs/x, 2)')
  if any(name in STARTS for name in names[1:]):
    raise InputError(f'config.guide={text!r}: {", ".join(STARTS)} must come first and appear only once; '
                     'anything before it would be ignored')
  if sum(bool(part.model) for part in guide.parts) > 1:
    raise InputError(f'config.guide={text!r}: only one part may name a second model')
  start = guide.start
  if start and start.scale == 1 and (start.negative or start.model):
    raise InputError(f'config.guide={text!r}: {start.negative or start.model} has no effect at scale 1; '
                     'raise the scale')
  return guide


def denoiser(guide, plain, null, away, clip, unconditional, second=None):
  """(weights, cond) -> Denoise, guided and clipped; weights.frozen['guide'] are the weights of the second model.

  Denoisers here take (x, noise, previous=None): a self-conditioned network its previous estimate of x0.

  Args:
    guide: the Guide.
    plain: (weights, cond) -> Denoise without guidance.
    null: cond -> the null condition.
    away: cond -> the condition to lead away from, null or a negative one.
    clip: Denoise -> Denoise, which keeps x0 in its bounds.
    unconditional: whether the model has learned to do without its condition.
    second: the Experiment that guide.model names, or None.
  """
  def alone(weights, cond):
    """The one prediction that is guided, or that guidance from two starts from."""
    return plain(weights, null(cond) if guide.scored and unconditional and not guide.start else cond)

  def predictions(weights, cond):
    if guide.model and not guide.scored:
      return _both(plain(weights, cond), second.plain(weights.frozen['guide'], cond))
    if cond is not None and guide.doubles:
      return guidance.doubled(lambda conds: plain(weights, conds), cond, null(cond) if guide.scored else away(cond))
    single = alone(weights, cond)
    return lambda x, noise, *previous: (single(x, noise, *previous),) * 2  # one call, whatever the stack makes of it

  def denoise(weights, cond):
    predict = predictions(weights, cond)
    estimated = alone(weights, cond) if guide.scored else None
    def guided(x, noise, *previous):
      estimate = lambda x, noise: estimated(x, noise, *previous).x0
      log_prob = second.log_prob(weights.frozen['guide'], cond, estimate) if guide.scored else None
      stacked = guidance.shared_predictions(lambda x, noise: predict(x, noise, *previous),
                                            lambda cond, null: guide.stack(cond, null, log_prob))
      return clip(stacked)(x, noise)
    return guided
  return denoise


def _both(cond, null):
  return lambda x, noise, *previous: (cond(x, noise, *previous), null(x, noise, *previous))
