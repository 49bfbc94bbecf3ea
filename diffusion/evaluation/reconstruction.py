"""How well an autoencoder gives back held-out images, and whether its latents, codes and discriminator are alive.

rfd and rfd_infinity are the Frechet distance of reconstructions to the same held-out images; 0 for the identity.
"""
from functools import partial

import jax
import numpy as np
from tqdm import tqdm

from diffusion.data.dataset import padded_batches, size, take
from diffusion.evaluation.base import columns, Evaluator, first, Measured
from diffusion.evaluation.metrics import frechet, make_features, record
from diffusion.evaluation.metrics.features import extract_all, make_extract
from diffusion.evaluation.metrics.measure import ENOUGH
from diffusion.evaluation.metrics.reconstruction import LARGEST, principal_components, psnr, ssim
from diffusion.evaluation.metrics.trained_features import digest
from diffusion.system import sharding
from diffusion.tasks import pages

BATCH = 64
SHOWN = 40     # images on the page
DEAD = .01     # nats a position, below which a channel says nothing
UNUSED = .5    # share of codes below which a codebook has collapsed
GAP = (.1, 4.)  # of the mean logits for images and reconstructions, outside of which one player has won


# ---- reconstructions
def reconstructed(run, weights, data, seed):
  """(images, their reconstructions, uint8 [N, H, W, C] each; {name: [N, ...]} of Model.inspect)."""
  @partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def both(weights, batch, key):
    x0, cond = run.encode(weights.frozen, None, batch)
    model = run.model(weights)
    images = [run.decode(weights.frozen, x, cond)['images'] for x in (x0, model.reconstruct(None, x0, cond))]
    return (*images, model.inspect(key, x0))

  parts, batch = [], -(-min(BATCH, size(data)) // run.mesh.size) * run.mesh.size
  batches = list(padded_batches(size(data), batch))
  for i, (index, count) in enumerate(tqdm(batches, 'reconstructing', unit='batch', leave=False, delay=2, disable=None)):
    placed = sharding.put_batch(run.task.batch(data, index), run.mesh)
    found = jax.device_get(both(weights, placed, jax.random.fold_in(jax.random.key(seed), i)))
    parts.append(jax.tree.map(lambda a: a[:count], found))
  return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)


# ---- what is said of them
def inside(seen, number_of_codes):
  """({name: Estimate}, details, warnings) of what Model.inspect has seen."""
  metrics, warnings = {}, []
  z = seen['latent']
  details = dict(latent_shape=list(z.shape[1:]), latent_mean=z.mean((0, 1, 2)).tolist(),
                 latent_std=z.std((0, 1, 2)).tolist())
  for name in ('bits_bound', 'elbo_nll'):
    metrics |= {name: record.mean(seen[name].astype(np.float64))} if name in seen else {}
  if 'kl' in seen:
    each = seen['kl'].mean((0, 1, 2))
    details['kl_per_channel'] = each.tolist()
    dead = np.flatnonzero(each < DEAD)
    warnings += [f'WARNING: {len(dead)} of {len(each)} channels of the latents say nothing (KL below {DEAD} nats a '
                 'position): lower the weight of the KL, or take fewer channels'] * bool(len(dead))
  if 'codes' in seen:
    share = np.bincount(seen['codes'].ravel(), minlength=number_of_codes) / seen['codes'].size
    used, spread = float(np.mean(share > 0)), share[share > 0]
    metrics['code_usage'] = record.share(used * number_of_codes, number_of_codes)
    details |= dict(codes=number_of_codes, perplexity=float(np.exp(-np.sum(spread * np.log(spread)))))
    warnings += [f'WARNING: the codebook has collapsed: {used:.0%} of {number_of_codes} codes are used. Take fewer '
                 'codes, or more steps'] * (used < UNUSED)
  if 'real' in seen:
    gap = float(seen['real'].mean() - seen['made'].mean())
    details |= dict(critic_real=float(seen['real'].mean()), critic_made=float(seen['made'].mean()))
    low, high = GAP
    lost = 'tells nothing apart' if gap < low else 'is far ahead'
    warnings += [f'WARNING: the discriminator {lost}: its logits differ by {gap:.2g} between images and '
                 f'reconstructions, expected {low} to {high:g}'] * (not low <= gap <= high)
  return metrics, details, warnings


def page(images, made, title):
  """Images, each above its reconstruction."""
  columns = 10
  rows, labels = [], []
  for start in range(0, min(SHOWN, len(images)), columns):
    rows += [images[start:start + columns][:SHOWN - start], made[start:start + columns][:SHOWN - start]]
    labels += ['image', 'reconstruction']
  return pages.rows(rows, labels, title=title)


# ---- the evaluator
def _needs(run, data):
  return first('' if 'reconstruct' in run.can and 'inspect' in run.can else
               f'the objective {run.objective.name} reconstructs nothing',
               '' if run.task.gives == 'images' else f'{run.task.gives} are no images',
               '' if size(data.heldout) >= ENOUGH else f'it needs at least {ENOUGH} held-out images')


def _prepare(run, data):
  """Reads or trains the features."""
  make_features(run.config)(data.train, sharding.local_mesh(run.mesh))


def _measure(run, weights, data, folder, report):
  options, mesh = run.config.evaluate, sharding.local_mesh(run.mesh)
  order = np.random.default_rng(0).permutation(size(data.heldout))
  some = take(data.heldout, order)
  report('images', f'{size(some)} held out, {options.features}')
  images, made, seen = reconstructed(run, weights, some, options.seed)
  pages.save_png(page(images, made, f'{run.config.objective}, held-out images'), folder / 'reconstructions.png')
  metrics, details, warnings = inside(seen, run.model(weights).codes)
  metrics |= dict(psnr=record.mean(psnr(images, made)), ssim=record.mean(ssim(images, made)))
  extractor = make_features(run.config)(data.train, mesh)
  see = make_extract(extractor, mesh)
  sides = [extract_all(see, [x], mesh)[0].moments for x in (made, images)]
  metrics |= dict(zip(('rfd', 'rfd_infinity'), frechet.both(*sides)))
  notes, numbers = [*warnings], int(np.prod(seen['latent'].shape[1:]))
  if images[0].size <= LARGEST and numbers < images[0].size:
    details['pca_psnr'] = float(psnr(images, principal_components(data.train.arrays['images'][:], images, numbers))
                                .mean())
    notes.append(f'principal components, {numbers} numbers for an image as the latents have, fitted on '
                 f'{size(data.train):,} training images: {details["pca_psnr"]:.2f} dB')
  protocol = dict(data_hash=digest(*columns(data.heldout)), extractor=options.features,
                  extractor_hash=extractor.digest, resize=extractor.resize)
  notes.append(frechet.warning(len(images), extractor.size))
  return Measured(metrics, {name: protocol for name in metrics}, dict(reconstruction=details), notes=tuple(notes))


EVALUATOR = Evaluator(_needs, _measure, _prepare)
