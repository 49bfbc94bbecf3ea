"""CLIP score: the mean of 100 cos(image, caption) over samples, neither clamped nor multiplied by 2.5 (GLIDE,
arXiv:2112.10741; torchmetrics has max(100 cos, 0), and Hessel et al., arXiv:2104.08718, 2.5 max(cos, 0)).

The CLIP is the one in config.evaluate.clip, and its hash is in the record. Guidance by a CLIP raises that CLIP's score
beyond what the images earn (GLIDE, section 4), so one that guided the samples is refused, under whatever name.
"""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.dataset import first_captions, padded_batches
from diffusion.errors import InputError
from diffusion.evaluation import zero_shot
from diffusion.evaluation.base import columns, Evaluator, first, Measured, needs_heldout
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.evaluation.text import draw, in_turn, requests_of
from diffusion.system import sharding, tensors
from diffusion.system.files import user_path
from diffusion.training.open_model import open_at, split_step


def cosines(judge, images, texts):
  """The cosine of each image, uint8 [N, H, W, C], and the unit vector of its text [N, D]; [N]. judge: Loaded."""
  run, weights, _ = judge

  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def of_batch(weights, images, texts):
    x0, _ = run.encode(weights.frozen, None, dict(images=images))
    return jnp.sum(run.model(weights).embed_image(x0) * texts, -1)
  batch, found = -(-min(len(images), 128) // run.mesh.size) * run.mesh.size, []
  for index, count in padded_batches(len(images), batch):
    rows = sharding.put_batch((images[index], texts[index]), run.mesh)
    found.append(jax.device_get(of_batch(weights, *rows))[:count])
  return np.concatenate(found)


def hash_of(weights):
  """Hash of the parameters of a CLIP, and of nothing else: its name and place do not matter."""
  return tensors.digest(sharding.fetch(weights.params))


def _place(where):
  """The folder of 'WORKDIR' or 'WORKDIR@STEP': steps of one training are too alike to judge each other."""
  return user_path(split_step(where, 'model')[0]).resolve()


def judge_of(run):
  """(the Loaded CLIP of config.evaluate.clip, its hash).

  Raises:
    InputError: it is no CLIP, takes images of another size, or is the one that guides, at any step.
  """
  where = run.config.evaluate.clip
  field = f'config.evaluate.clip={where!r}'
  judge = open_at(where, field)
  if 'embed_text' not in judge.run.can:
    raise InputError(f'{field}: expected the work directory of configs/clip.py or siglip.py, and it has the objective '
                     f'{judge.run.objective.name}')
  there, here = judge.run.task.facts['shape'], run.task.facts['shape']
  if list(there) != list(here):
    raise InputError(f'{field} takes images of {list(there)}, and the samples are {list(here)}; use one of that size')
  mark = hash_of(judge.weights)
  if run.guide.scored == 'clip_guidance' and (_place(where) == _place(run.guide.model) or
                                              hash_of(open_at(run.guide.model).weights) == mark):
    raise InputError(f'{field} is the CLIP that guides the samples, at this or another step (hash {mark}): its score '
                     'would rise with the guidance and not with the images; name another one, such as one of another '
                     'config.seed')
  return judge, mark


def _needs(run, data):
  return first('' if run.config.evaluate.clip else
               'config.evaluate.clip names no CLIP; set it to the work directory of one',
               '' if run.draws else f'the objective {run.objective.name} draws nothing',
               '' if run.task.takes[:1] == ('prompt',) and run.task.gives == 'images' else
               f'config.task={run.config.task!r} draws no images of prompts', needs_heldout(data))


def _measure(run, weights, data, folder, report):
  """The score of samples for captions of held-out and training examples, and that of held-out pairs."""
  options, (judge, mark) = run.config.evaluate, judge_of(run)
  report('clip_score', f'{options.num_samples} samples, by {options.clip}')
  half = options.num_samples // 2
  (cond, held), (more, known) = (requests_of(run, side, number, options.seed) for side, number in
                                 ((data.heldout, options.num_samples - half), (data.train, half)))
  vectors = partial(zero_shot.text_vectors, judge.run, judge.weights)  # refuses strange texts: before drawing
  asked = vectors(in_turn(*(np.array(first_captions(side)) for side in (held, known))))
  real, captions = data.heldout.arrays['images'][:], vectors(np.array(first_captions(data.heldout)[:]))
  images = draw(run, weights, in_turn(cond, more), options.seed)
  score = record.mean(100 * cosines(judge, images, asked).astype(np.float64))
  own = 100 * cosines(judge, real, captions).astype(np.float64)
  others = 100 * cosines(judge, real, np.roll(captions, 1, 0)).astype(np.float64)
  protocol = dict(convention='mean of 100 cos', clip_hash=mark, data_hash=digest(*columns(data.heldout)))
  notes = (f'clip_score: 100 cos, by the CLIP {mark[:8]}; {own.mean():.1f} for held-out images and their captions, '
           f'{others.mean():.1f} for captions of others',)
  return Measured(dict(clip_score=score), dict(clip_score=protocol), dict(clip_score=dict(others=others.mean())),
                  dict(clip_score=record.mean(own)), notes)


EVALUATOR = Evaluator(_needs, _measure, lambda run, data: judge_of(run))
