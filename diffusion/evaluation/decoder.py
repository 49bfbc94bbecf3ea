"""A decoder of embeddings: whether what it draws without a caption is what the embedding is of, by the judge of texts.

Embeddings of held-out images, of their captions (which lie elsewhere: a decoder was trained on images alone), and those
that the priors of config.evaluate.prior draw for the captions, beside each other; how different the variations of an
image are, and how exactly images are drawn again from their noise.
"""
import jax
import numpy as np

from diffusion import samplers
from diffusion.data.dataset import first_captions, size, take
from diffusion.evaluation import text
from diffusion.evaluation.base import columns, Evaluator, first, Measured
from diffusion.evaluation.metrics import record
from diffusion.evaluation.metrics.judge import judge, said
from diffusion.evaluation.metrics.scores import diversity
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.generation import chain
from diffusion.generation.edit_parts import noise_of, unguided
from diffusion.generation.embedding_edits import condition
from diffusion.generation.requests import ask
from diffusion.generation.sampling import make_draw
from diffusion.setup import specs
from diffusion.system import sharding
from diffusion.tasks import pages
from diffusion.training.open_model import open_at

SOURCES, VARIATIONS = 8, 8  # images whose variations are compared, and variations of each
INVERTED = 32               # images that are drawn again from their noise
SHOWN = 12                  # columns of decoded.png


def priors(run):
  """{work directory: Loaded} of config.evaluate.prior. Raises InputError for one that does not fit the decoder."""
  found = {where: open_at(where, f'config.evaluate.prior={where!r}') for where in
           specs.split(run.config.evaluate.prior, ',')}
  for model in found.values():
    chain.check([model, model._replace(run=run)])
  return found


def embeddings(run, captions, models, data, seed):
  """{name: unit vectors [n, D]} for the examples of a Dataset."""
  number = len(captions)
  of_text = ask(run, dict(prompt=captions, embedding='text'), np.arange(number), seed).cond['embedding']
  found = dict(image=np.float32(run.task.embed(data.arrays['images'][:])), text=of_text / of_text.shape[-1] ** .5)
  for where, model in models.items():
    drawn, = chain.draw([model], dict(prompt=captions), number, seed, min(128, number))
    found[where] = np.asarray(drawn.outputs['embedding'])
  return found


def inversion(run, weights, images):
  """PSNR in dB of images uint8 [n, H, W, C] drawn again from their noise, an Estimate."""
  plain, cond = unguided(run), condition(run, run.task.embed(images))
  noise = noise_of(plain, weights, images, cond)
  again = make_draw(plain, 0, len(images), samplers.ddim())(weights, np.arange(len(images)), cond, noise)[0]['images']
  error = np.mean((again.astype(np.float64) - images) ** 2, (1, 2, 3))
  return record.mean(10 * np.log10(255 ** 2 / np.maximum(error, 1e-3)))


def variety(run, weights, images, centre, seed):
  """The mean effective number of different variations of an image, of VARIATIONS, an Estimate over images.

  By the cosine of pixels, without their mean over the data.
  """
  n = len(images)
  cond = condition(run, np.repeat(run.task.embed(images), VARIATIONS, 0))
  drawn = text.draw(run, weights, cond, seed).reshape(n, VARIATIONS, -1) - centre.reshape(-1)
  return record.mean([diversity(each, 0).value for each in drawn.astype(np.float32)])


# ---- the evaluator
def _needs(run, data):
  return first('' if run.task.embed else f'config.task={run.config.task!r} has no embeddings of images',
               text.needs(run, data))


def _prepare(run, data):
  priors(run)
  judge(data, sharding.local_mesh(run.mesh))


def _measure(run, weights, data, folder, report):
  options, models = run.config.evaluate, priors(run)
  number, trained = min(options.num_samples, size(data.heldout)), judge(data, sharding.local_mesh(run.mesh))
  held = take(data.heldout, np.random.default_rng(options.seed).permutation(size(data.heldout))[:number])
  captions = [str(caption) for caption in first_captions(held)[:]]
  sets = embeddings(run, captions, models, held, options.seed)
  report('decoder', f'{number} images from the embeddings of each of: {", ".join(sets)}')
  metrics, rows, pictures = {}, {}, [held.arrays['images'][:SHOWN]]
  for name, z in sets.items():
    images = text.draw(run, weights, condition(run, z), options.seed)
    pictures.append(images[:SHOWN])
    rows[name], _ = text.scores(trained, images, said(held), data.heldout.arrays['images'], said(data.heldout))
  for name in ('kind', 'colour'):
    metrics |= {f'{key}_{name}': rows[key][f'caption_{name}'] for key in ('image', 'text')}
  images = held.arrays['images']
  metrics['inversion_psnr'] = inversion(run, weights, images[:INVERTED])
  metrics['variety'] = variety(run, weights, images[:SOURCES], data.train.arrays['images'][:2000].mean(0), options.seed)
  pages.save_png(pages.rows(pictures, ['held-out images', *sets], captions[:SHOWN], 'decoded, without captions'),
                 folder / 'decoded.png')
  show = lambda e: f'{e.value:.3f} ({e.low:.3f} to {e.high:.3f})'
  lines = ['| decoded embeddings of | S(kind) | S(colour) | class |', '|---|---|---|---|']
  lines += [f'| {name} | ' + ' | '.join(show(row[f'caption_{what}']) for what in ('kind', 'colour', 'class')) + ' |'
            for name, row in rows.items()]
  protocol = dict(data_hash=digest(*columns(held)), judge_hash=trained.digest)
  details = {name: {key: e._asdict() for key, e in row.items()} for name, row in rows.items()}
  notes = (*lines, f'variety: effective number of different ones of {VARIATIONS} variations; inversion_psnr: in '
           f'{len(run.levels.logsnr) - 1} steps', '')
  return Measured(metrics, {name: protocol for name in metrics}, dict(decoder=details), notes=notes)


EVALUATOR = Evaluator(_needs, _measure, _prepare)
