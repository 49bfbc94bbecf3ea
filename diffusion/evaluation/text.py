"""Whether samples do what their captions say, by a judge that is trained on the data (metrics/judge.py).

Half of the captions are those of held-out examples, whose combinations of attributes were never trained on. The scores
S are explained in metrics/alignment.py; the class, which a model learns first, is reported as a plain accuracy.
"""
import jax
import numpy as np

from diffusion.data.dataset import first_captions, size, take
from diffusion.evaluation.base import columns, Evaluator, first, Measured, needs_heldout
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.alignment import alignment, gap
from diffusion.evaluation.metrics.judge import accuracies, FIRST, judge, said, wanted
from diffusion.evaluation.metrics.measure import ENOUGH
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.evaluation.sample_metrics import with_progress
from diffusion.generation import sampling
from diffusion.system import sharding
from diffusion.tasks import pages

SHOWN = 32    # samples in captions.png
FEW = 48      # samples that an alarm during training judges
LEAST = .5    # S of the class below which it is raised


# ---- captions and samples
def requests_of(run, side, number, seed):
  """(cond [number, ...], the examples) of captions of a Dataset in random order; entry k does not depend on number."""
  index = np.resize(np.random.default_rng(seed).permutation(size(side)), number)
  return jax.device_get(run.encode(run.frozen, None, run.task.batch(side, index))[1]), take(side, index)


def draw(run, weights, cond, seed, lost=None):
  """uint8 images [number, H, W, C], one of each condition, but for the samples `lost` (see sampling.stream)."""
  number = len(jax.tree.leaves(cond)[0])
  sample, batch = sampling.make_sample(run, seed), min(run.config.sample.batch, number)
  batches = sampling.stream(run, sample, batch, weights, np.arange(number), cond, lost=lost)
  return np.concatenate(list(with_progress(batches, number)))


def in_turn(first, second):
  """Trees of arrays [n, ...] and [n or n - 1, ...] -> one with their entries in turn, which starts with `first`."""
  n, m = (len(jax.tree.leaves(tree)[0]) for tree in (first, second))
  order = np.argsort(np.concatenate([2 * np.arange(n), 2 * np.arange(m) + 1]))
  return jax.tree.map(lambda a, b: np.concatenate([a, b])[order], first, second)


# ---- scores
def scores(judge, images, texts, real, real_texts):
  """({name: Estimate}, details): what the judge sees in samples against what their captions say.

  Args:
    judge: a Judge.
    images, texts: samples and what their captions say (see judge.said), of a held-out and a training example in turn.
    real, real_texts: held-out examples.
  """
  heads, seen, asked = list(judge.values), judge.predict(images), wanted(texts, judge.values)
  real_seen, real_asked = judge.predict(real), wanted(real_texts, judge.values)
  def score(names, rows=slice(None)):
    chosen = [heads.index(name) for name in names]
    return alignment(seen[rows][:, chosen], asked[rows][:, chosen], real_seen[:, chosen], real_asked[:, chosen])
  named = dict(kind=['kind'], colour=['colour'], second=[name for name in heads if name not in FIRST])
  right, spoken = accuracies(seen, asked)
  found = {f'caption_{name}': score(group) for name, group in named.items()}
  found['caption_class'] = record.share(right[heads.index('class')], len(images))
  spoken_of = heads[1:]
  sides = [score(spoken_of, slice(start, None, 2)) for start in (0, 1)]
  found['caption_gap'] = gap(*sides[::-1])
  each = {head: dict(samples=right[i] / max(spoken[i], 1), number=int(spoken[i]), real=judge.accuracy[head].value)
          for i, head in enumerate(heads)}
  both = {name: side and side.value for name, side in zip(('heldout', 'training'), sides)}
  return {name: value for name, value in found.items() if value}, dict(heads=each, captions=both)


# ---- the page
def page(judge, images, texts, captions, title):
  """captions.png: each sample beside its caption, and every value that the caption names, with what the judge sees."""
  seen, asked = judge.predict(images), wanted(texts, judge.values)
  lines = []
  for caption, saw, ask in zip(captions, seen, asked):
    verdict = [verdict_of(names, saw[i], ask[i]) for i, names in enumerate(judge.values.values()) if ask[i] >= 0]
    lines.append([[(word, 'black') for word in str(caption).split()], verdict])
  return pages.beside(images, lines, title)


def verdict_of(names, saw, ask):
  """(text, colour): the value that was asked for, and the one that is seen instead."""
  return (names[ask], 'green') if saw == ask else (f'{names[ask]} ({names[saw]}?)', 'red')


# ---- the evaluator
def needs(run, data):
  """'' or the reason why it cannot be measured how samples follow captions."""
  return first('' if run.draws else f'the objective {run.objective.name} draws nothing',
               '' if run.task.gives == 'images' else f'the samples are {run.task.gives}, not images',
               '' if run.task.takes[:1] == ('prompt',) else f'config.task={run.config.task!r} takes no prompt',
               '' if 'captions' in data.train.arrays else 'the data have no captions',
               '' if said(take(data.train, slice(1))) else
               'it is not known what the captions of these data say; sprites(..) tell it',
               '' if size(data.train) >= ENOUGH else
               f'it needs at least {ENOUGH} training images, and there are {size(data.train)}', needs_heldout(data))


def _prepare(run, data):
  """Reads or trains the judge."""
  judge(data, sharding.local_mesh(run.mesh))


def _measure(run, weights, data, folder, report):
  """The scores of samples for captions of held-out and training examples; writes captions.png."""
  options = run.config.evaluate
  report('text', f'{options.num_samples} samples, half of them for held-out captions')
  trained, half = judge(data, sharding.local_mesh(run.mesh)), options.num_samples // 2
  (cond, held), (more, known) = (requests_of(run, side, number, options.seed) for side, number in
                                 ((data.heldout, options.num_samples - half), (data.train, half)))
  images = draw(run, weights, in_turn(cond, more), options.seed)
  texts, captions = (in_turn(*map(np.array, pair)) for pair in (
    (said(held), said(known)), (first_captions(held), first_captions(known))))
  metrics, details = scores(trained, images, texts, data.heldout.arrays['images'], said(data.heldout))
  shown = slice(SHOWN)
  sheet = page(trained, images[shown], texts[shown], captions[shown], f'{run.config.sampler}, {run.config.grid}'
               f"{f', {run.config.guide}' if run.config.guide else ''}; captions held out and trained, in turn")
  pages.save_png(sheet, folder / 'captions.png')
  protocol = dict(data_hash=digest(*columns(data.heldout)), judge_hash=trained.digest)
  weakest = min(trained.accuracy, key=lambda head: trained.accuracy[head].value)
  notes = ('caption_kind, caption_colour and caption_second (all else that is said) are 1 where samples follow their '
           'captions as real images do and 0 where they ignore them; caption_gap is that of training captions above '
           'held-out ones', f'the judge is right on {trained.accuracy["class"].value:.1%} of the classes of held-out '
           f'images, least often on {weakest}: {trained.accuracy[weakest].value:.1%}')
  heldout = dict(caption_class=trained.accuracy['class'])
  return Measured(metrics, {name: protocol for name in metrics}, dict(text=details), heldout, notes)


EVALUATOR = Evaluator(needs, _measure, _prepare)


# ---- during training
def watched(run, data):
  """Whether samples are judged in training: where an evaluation is asked for, since the judge has to be trained.

  Not on a learned schedule, as they would be drawn on the initial one.
  """
  wanted = run.config.evaluate.every or run.config.evaluate.at_end
  return bool(wanted) and 'text' in run.task.evaluators and run.objective.name != 'vdm' and not needs(run, data)


def watch(run, data, report):
  """(step, weights) -> values of make_curve, from a quarter of the training on; reports where captions are ignored."""
  point, points = make_curve(run, data), []
  def measure(step, weights):
    values = point(weights) if 4 * step >= run.plan.steps else {}
    if values:
      points.append((step, values['caption_class_score']))
      if ignored(points):
        report('captions', ignored(points))
    return values
  return measure


def make_curve(run, data):
  """weights -> {'caption_class_score', 'caption_class_score_error'}: S of the class of FEW samples.

  {} where samples are not finite, as they may be at first.
  """
  seed, trained = run.config.evaluate.seed, judge(data, sharding.local_mesh(run.mesh))
  cond, examples = requests_of(run, data.heldout, FEW, seed)
  asked, every = wanted(said(examples), trained.values)[:, :1], wanted(said(data.heldout), trained.values)[:, :1]
  real = trained.predict(data.heldout.arrays['images'])[:, :1]

  def point(weights):
    lost = []
    images = draw(run, weights, cond, seed, lost)
    score = None if lost else alignment(trained.predict(images)[:, :1], asked, real, every)
    return dict(caption_class_score=score.value, caption_class_score_error=score.error) if score else {}
  return point


def ignored(points):
  """A line for the user if at the last of points [(step, S of the class)] samples ignore their captions, or ''."""
  step, score = points[-1]
  if score >= LEAST:
    return ''
  return (f'the samples do not follow their captions: S of the class is {score:.2f} at step {step} (0: captions are '
          "ignored, 1: followed). Raise config.guide to 'cfg(3)' or more and lower the share of dropped captions; if "
          'it stays so, captions do not reach the network')
