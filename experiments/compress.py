r"""Lossless compression of held-out images with a trained model, compared with PNG, LZMA and the model's bound.

  python -m experiments.compress --workdir=runs/cosine_ddim                       64 held-out images, 50 noise levels
  python -m experiments.compress --workdir=runs/cosine_ddim --number=200 --steps=100
  python -m experiments.compress --workdir=runs/cosine_ddim --decode=runs/cosine_ddim/compressed/heldout.bits
                                                                                  writes pictures.npz next to the file

The chain has --steps levels, evenly spaced in log-SNR, from the noisiest level of the schedule to --sigma_min, by
default the level with the smallest bound. Its variances are fitted (diffusion.evaluation.elbo.fit_variances). Both are
chosen on training images. The class labels are a condition of the model and stored in the file; the net cost excludes
them. Decoding needs the same machine and versions (see experiments.bits_back).

With the model of configs/cosine_ddim.py, trained for sample quality, 64 images take 4.27 bits per dimension net, 0.2 %
below an estimate of the bound of 4.28; PNG takes 3.8 (2.5 as one sheet), and LZMA 1.0, because sprites share identical
parts and samples of the model do not. Writes heldout.bits, which is decoded and compared, and record.json.
"""
import argparse
import hashlib
import io
import json
import lzma
import sys
import time
from typing import Any, Callable, NamedTuple

from diffusion.system import platform

FITTED = 64  # number of training images


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--workdir', required=True, help='of a trained model')
  add('--out', help='folder to write to (default: WORKDIR/compressed)')
  add('--decode', metavar='FILE', help='only decode a file written by this program')
  add('--number', type=int, default=64, help='number of held-out images (default: 64)')
  add('--steps', type=int, default=50, help='noise levels of the chain (default: 50)')
  add('--sigma_min', type=float, help='sigma / alpha of the cleanest level (default: chosen)')
  add('--batch', type=int, default=8, help='images at a time: fewer need fewer initial bits (default: 8)')
  add('--bins', type=int, default=8,
      help='bins per smallest standard deviation of a level: more need more initial bits (default: 8)')
  return parser.parse_args()


class Model(NamedTuple):
  """A trained model, ready to compress."""
  estimate: Callable  # (x, noise, cond) -> Pred, jitted, without guidance
  schedule: Any
  name: str           # a hash of the weights
  encode: Callable    # Dataset -> (x0, cond)
  data: Any           # Source
  classes: tuple


def model(workdir):
  """The newest averaged parameters of a work directory, and its data."""
  import jax
  from diffusion.core.gaussian import clip
  from diffusion.errors import InputError
  import numpy as np
  from diffusion.data.dataset import size
  from diffusion.setup import build
  from diffusion.training.open_model import load
  run, weights, _ = load(workdir, guide='')
  data = build.load_data(run.config)
  if run.denoise is None or run.self_condition or not run.task.levels:
    raise InputError(f'--workdir={workdir}: a classifier, a self-conditioned model or one of continuous data cannot '
                     'compress; use another model')
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(jax.device_get(weights.params)):
    digest.update(leaf.tobytes())
  clipped = clip if run.config.clip_x0 else lambda denoise: denoise
  estimate = jax.jit(lambda x, noise, cond: clipped(run.plain(weights, cond))(x, noise))
  def encode(dataset):
    return jax.device_get(run.encode(weights.frozen, None, run.task.batch(dataset, np.arange(size(dataset)))))
  return Model(estimate, run.schedule, digest.hexdigest()[:16], encode, data, tuple(run.classes))


def chain_of(schedule, steps, sigma_min):
  """The chain's table with a number of levels down to sigma_min."""
  from diffusion.core import grids
  from diffusion.evaluation import elbo
  return elbo.chain(grids.exponential(steps, sigma_min=sigma_min)(schedule))


def fit(model, steps, sigma_min):
  """(sigma_min, shares) with the smallest bound on training images."""
  import numpy as np
  from diffusion import samplers
  from diffusion.core import likelihood
  from diffusion.evaluation import elbo
  from diffusion.data.dataset import take
  index = np.random.default_rng(0).permutation(len(model.data.train.images))[:FITTED]
  x0, cond = model.encode(take(model.data.train, index))
  keys = samplers.sample_keys(1, index)
  errors = lambda table: elbo.errors(keys, lambda x, noise: model.estimate(x, noise, cond), table, x0)
  table = chain_of(model.schedule, steps, sigma_min)
  error = errors(table)
  if sigma_min is None:
    below = np.log1p(likelihood.reverse(table).gain * error) / 2
    cost = .5 * np.log(error) + np.cumsum(below[::-1])[::-1] - below  # of a chain from each row: decoder and steps
    first = min(int(np.argmin(cost)), len(error) - 2)
    sigma_min = float(table.sigma[first] / table.alpha[first])
    table = chain_of(model.schedule, steps, sigma_min)
    error = errors(table)
  return sigma_min, elbo.fit_variances(table, error)


def padded(model, cond, batch):
  """estimate(x, noise, ids) with the signature that the codec expects."""
  import jax
  if cond is None:
    return lambda x, noise, ids: model.estimate(x, noise, None)
  return lambda x, noise, ids: model.estimate(x, noise, jax.tree.map(lambda a: a[ids], cond))


def bounds(model, x0, cond, table, shares, batch, draws=2):
  """Bound of each image in bits per dimension [N], the mean over a few draws of the noise."""
  import jax
  import numpy as np
  from diffusion import samplers
  from diffusion.evaluation import elbo
  @jax.jit
  def bound(keys, x0, cond):
    return elbo.bound(keys, lambda x, noise: model.estimate(x, noise, cond), table, x0, variance=shares)[0]['total']
  means = []
  for start in range(0, len(x0), batch):
    ids = np.minimum(np.arange(start, start + batch), len(x0) - 1)
    part = cond if cond is None else jax.tree.map(lambda a: a[ids], cond)
    totals = [np.asarray(bound(samplers.sample_keys(seed, ids), x0[ids], part)) for seed in range(draws)]
    means.append(np.mean(totals, 0))
  return np.concatenate(means)[:len(x0)]


def others(images):
  """Bits per dimension of PNG, with a file per image and with one file for all, and of LZMA on all images together."""
  import numpy as np
  from PIL import Image
  def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, 'PNG', optimize=True)
    return len(buffer.getvalue())
  sheet = np.ascontiguousarray(np.concatenate(list(images), 0))
  packed = lzma.compress(images.tobytes(), preset=9 | lzma.PRESET_EXTREME)
  return {'PNG, a file each': 8 * sum(png(i) for i in images) / images.size,
          'PNG, one sheet': 8 * png(sheet) / images.size, 'LZMA, all together': 8 * len(packed) / images.size}


def compress(model, options, out):
  """Compresses held-out images, decodes and compares them; returns the record."""
  import numpy as np
  from experiments import bits_back
  from diffusion.data.dataset import take
  from diffusion.errors import InputError
  from diffusion.system.files import write_atomic
  heldout = model.data.heldout
  if not 1 <= options.number <= len(heldout.images):
    raise InputError(f'--number={options.number}: expected from 1 to the {len(heldout.images)} held-out images')
  part = take(heldout, np.random.default_rng(0).permutation(len(heldout.images))[:options.number])
  part = part._replace(images=part.images[:])  # reads those of a stream
  x0, cond = model.encode(part)
  print('choosing levels and variances ..', flush=True)
  sigma_min, shares = fit(model, options.steps, options.sigma_min)
  table = chain_of(model.schedule, options.steps, sigma_min)
  chain, estimate = bits_back.plan(table, shares, options.bins), padded(model, cond, options.batch)
  note = dict(steps=options.steps, sigma_min=sigma_min, shares=shares.tolist(), bins=options.bins,
              labels=part.labels.tolist() if model.classes else None)
  print('compressing ..', flush=True)
  start = time.perf_counter()
  data, cost = bits_back.encode(part.images, estimate, chain, model=model.name, batch=options.batch, note=note)
  seconds = time.perf_counter() - start
  write_atomic(out / 'heldout.bits', data)
  print('decoding ..', flush=True)
  if not np.array_equal(decoded(model, (out / 'heldout.bits').read_bytes()), part.images):
    raise InputError('the decoded images differ from the compressed ones')
  print('measuring the bound ..', flush=True)
  costs = costs_of(cost, bounds(model, x0, cond, table, shares, options.batch), part.images, options.batch)
  return dict(pictures=options.number, levels=options.steps, sigma_min=sigma_min, **costs, file_bytes=len(data),
              file=8 * len(data) / part.images.size, seconds=seconds, others=others(part.images))


def costs_of(cost, bound, images, batch):
  """The part of the record that compares a codec's Cost with the bound of each image [N], in bits per dimension."""
  import numpy as np
  size, starts = images[0].size, range(0, len(bound), batch)
  sizes = np.array([len(bound[i:i + batch]) for i in starts])
  gaps = cost.batches / size - np.array([bound[i:i + batch].sum() for i in starts])  # bits per dimension, times images
  net, mean = float(cost.batches.sum() / images.size), float(bound.mean())
  error = float(gaps.std(ddof=1) * len(gaps) ** .5 / sizes.sum()) if len(gaps) > 1 else None
  return dict(net=net, bound=mean, gap_percent=100 * (net / mean - 1), gap_error_percent=error and 100 * error / mean,
              initial_bits_per_dimension_of_a_batch=cost.initial / (size * int(sizes[0])),
              initial_bytes=cost.initial // 8)


def decoded(model, data):
  """The images of a file."""
  import numpy as np
  from experiments import bits_back
  from diffusion.data.dataset import condition_vectors
  from diffusion.errors import InputError
  head = bits_back.header(data)
  note = head['note']
  if (note['labels'] is None) != (not model.classes):
    raise InputError('these images were compressed with another model; decode them with the same')
  cond = None if note['labels'] is None else condition_vectors(np.asarray(note['labels']), model.classes)
  chain = bits_back.plan(chain_of(model.schedule, note['steps'], note['sigma_min']), note['shares'], note['bins'])
  return bits_back.decode(data, padded(model, cond, head['batch']), chain, model=model.name)


def table_of(record):
  """The record as a Markdown table."""
  rows = [('this model, net', record['net']), ('its bound', record['bound']),
          ('the whole file, with initial bits (whose share falls with more images)', record['file']),
          *record['others'].items()]
  gap, error = record['gap_percent'], record['gap_error_percent']
  lines = ['| bits per dimension | |', '|---|---|'] + [f'| {name} | {value:.3f} |' for name, value in rows]
  return '\n'.join(lines + [
    '', f'{record["pictures"]} images, {record["levels"]} levels down to sigma / alpha = {record["sigma_min"]:.3g}. '
    f'The net cost is {gap:+.2f} {f"+- {error:.2f} " if error else ""}% from the bound. '
    f'Initial bits: {record["initial_bytes"]} bytes, '
    f'{record["initial_bits_per_dimension_of_a_batch"]:.1f} bits per dimension of the first batch.'])


def main():
  options = arguments()
  platform.start()
  import numpy as np
  from diffusion.errors import InputError
  from diffusion.system.files import output_folder, user_path, write_atomic
  from diffusion.commands import report
  from diffusion.training.record import versions
  try:
    trained = model(options.workdir)
    if options.decode:
      source = user_path(options.decode)
      if not source.is_file():
        raise InputError(f'--decode={options.decode}: no such file')
      buffer, target = io.BytesIO(), source.parent / 'pictures.npz'
      np.savez_compressed(buffer, images=decoded(trained, source.read_bytes()))
      write_atomic(target, buffer.getvalue())
      report('wrote', target)
      return
    out = output_folder(options.out or f'{options.workdir}/compressed')
    record = compress(trained, options, out)
  except (InputError, OSError, ValueError) as error:
    sys.exit(f'error: {error}')
  about = dict(arguments=vars(options), versions=versions(), **record)
  write_atomic(out / 'record.json', json.dumps(about, indent=2).encode())
  report('wrote', out / 'heldout.bits')
  report('wrote', out / 'record.json')
  print(table_of(record))


if __name__ == '__main__':
  main()
