"""Lossless compression with a diffusion model: bits back with asymmetric numeral systems, layer by layer (Bit-Swap,
arXiv:1905.06845).

The stack of bits starts with random ones. To encode an image x, walk the chain x -> z_0 -> .. -> z_{T-1} of a table's
levels (z_i is x with the noise of row i) from the clean end:

  pop z_0 ~ q(z_0 | x), push x by p(x | z_0);  pop z_1 ~ q(z_1 | z_0), push z_0 by p(z_0 | z_1);  ..  push z_{T-1} by
  the prior

Popping by q recovers bits, because decoding is the same walk backwards and returns the popped bits: the next image
pops what the previous one has pushed. The net cost is the variational bound of the chain (diffusion.evaluation.elbo),
and only the first image needs initial bits: about those of two layers, whatever the length of the chain.

z_i lives on a grid of bins, `bins` per smallest standard deviation used for it; their width cancels in the net cost.
Gaussians are coded with 24 bits around their mean, where no bin is rarer than 2^-24; a value far from the mean is
coded in two parts (see `_put`).

The decoder needs the network, table and variances of the encoder (checked by a fingerprint in the file), and
arithmetic identical to the last bit, since a mean rounded differently is a different code. In practice this means the
same machine, versions and compiled program at the same batch size, so `estimate` is jitted once and always called with
`batch` images. Decoding must end with the initial random bits and with images of the stored checksum; otherwise it
raises InputError.
"""
import hashlib
import json
import struct
import zlib
from typing import Any, Callable, NamedTuple

import numpy as np

from diffusion.core import likelihood
from diffusion.core.gaussian import Noise, take
from diffusion.errors import InputError
from diffusion.evaluation.elbo import learned_variance, variance_shares

MAGIC = b'DIFFUSED'
REACH_Q, REACH_P = 8, 16  # standard deviations around the mean with their own bins
FAR = 2 ** 23             # bins beyond these
WORDS = 8                 # random words per value of a batch: 256 bits, far more than two layers take


class Chain(NamedTuple):
  """What encoder and decoder share, in float64 [T]."""
  table: Noise
  width: Any      # of the bins of z_i
  forward: Any    # standard deviation of q(z_i | z_{i-1}); in row 0 of q(z_0 | x)
  log_small: Any  # lower limit of the log variance of p(z_{i-1} | z_i); in row 0 of p(x | z_0)
  log_ratio: Any  # upper limit minus lower limit
  share: Any      # position between the limits, 0 to 1
  learned: bool   # whether the network gives the position instead


class Cost(NamedTuple):
  """The size of an encoding in bits."""
  batches: Any   # net, of each batch [batches]
  initial: int   # random bits stored in the file


def plan(table, variance='small', bins=16):
  """The Chain of a table; variance as for diffusion.evaluation.elbo.

  Raises:
    InputError: a table of fewer than 2 levels, an unknown variance, too few bins.
  """
  if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= 1024:
    raise InputError(f'bins={bins!r}: expected from 2 to 1024 bins per standard deviation')
  steps = likelihood.reverse(table)
  share, learned = variance_shares(variance, len(table.logsnr))
  kept = np.append(1., -np.expm1(np.diff(table.logsnr)))  # k; in row 0 that of a step from clean data
  forward = table.sigma * np.sqrt(kept)
  smallest = np.exp(.5 * (steps.log_small + share * steps.log_ratio))  # where learned, share is 0
  backward = np.append(smallest[1:], table.sigma[-1])
  return Chain(table, np.minimum(forward, backward) / bins, forward, steps.log_small, steps.log_ratio, share, learned)


# ---- one layer: integers k on a grid, coded by their distance from the bin of the mean
def _library():
  try:
    import constriction
  except ImportError as error:
    raise InputError("the codec needs constriction: pip install 'diffusion-jax[codec]'") from error
  return constriction.stream


def _near(mean, std, width):
  """(nearest bin, parameters of QuantizedGaussian: the mean relative to that bin and the standard deviation), flat."""
  mean, std = np.broadcast_arrays(np.ravel(mean) / width, np.ravel(std) / width)
  if not (np.all(np.isfinite(mean)) and np.all(np.isfinite(std))):
    raise InputError('the model predicts numbers that are not finite; it cannot be used for coding')
  centre = np.round(mean)
  return centre.astype(np.int64), (mean - centre, np.ascontiguousarray(std))


def _model(reach, std, width):
  half = int(np.ceil(reach * np.max(std) / width))
  return _library().model.QuantizedGaussian(-half, half), half


def _take_q(stack, mean, std, width):
  """Bins of z ~ N(mean, std^2), popped off the stack."""
  centre, parameters = _near(mean, std, width)
  return centre + stack.decode(_model(REACH_Q, std, width)[0], *parameters)


def _return_q(stack, k, mean, std, width):
  centre, parameters = _near(mean, std, width)
  stack.encode_reverse((k - centre).astype(np.int32), _model(REACH_Q, std, width)[0], *parameters)


def _put(stack, k, mean, std, width):
  """Pushes bins by N(mean, std^2). The outermost symbols stand for all beyond; a uniform second part codes how far."""
  centre, parameters = _near(mean, std, width)
  model, half = _model(REACH_P, std, width)
  away = k - centre
  beyond = np.abs(away)[np.abs(away) >= half] - half
  if np.any(beyond >= FAR):
    raise InputError(f'a value is {beyond.max() + half} bins away from its predicted mean; this model cannot code it')
  stack.encode_reverse(beyond.astype(np.int32), _library().model.Uniform(FAR))
  stack.encode_reverse(np.clip(away, -half, half).astype(np.int32), model, *parameters)


def _get(stack, mean, std, width):
  centre, parameters = _near(mean, std, width)
  model, half = _model(REACH_P, std, width)
  away = stack.decode(model, *parameters).astype(np.int64)
  outside = np.abs(away) == half
  away[outside] += np.sign(away[outside]) * stack.decode(_library().model.Uniform(FAR), int(outside.sum()))
  return centre + away


# ---- the chain; z are flat bins of all images of a batch, x flat uint8
def _q(chain, i, below):
  """(mean, std, width) of z_i given z_{i-1}, or given x if i is 0."""
  table = chain.table
  if i == 0:
    return table.alpha[0] * (below / 127.5 - 1), chain.forward[0], chain.width[0]
  return table.alpha[i] / table.alpha[i - 1] * chain.width[i - 1] * below, chain.forward[i], chain.width[i]


def _p(chain, i, z, ask):
  """(mean, std, width) of z_{i-1} given z_i, or of x in units of 1/255 if i is 0."""
  t = take(chain.table, i)
  x0, learned_share = ask(z * chain.width[i], t)
  share = learned_share if chain.learned else chain.share[i]
  std = np.exp(.5 * (chain.log_small[i] + share * chain.log_ratio[i]))
  if i == 0:
    return (x0 + 1) * 127.5, std * 127.5, 1.
  s = take(chain.table, i - 1)
  kept = np.exp(t.logsnr - s.logsnr)  # 1 - k
  from_z = kept * s.alpha / t.alpha if t.alpha > 0 else 0.
  return s.alpha * (1 - kept) * x0 + from_z * chain.width[i] * z, std, chain.width[i - 1]


def _levels(mean, std):
  """The model of the 256 values: the mass of each, the ends including all beyond (DDPM, equation 13)."""
  _, (_, std) = _near(mean, std, 1.)
  return _library().model.QuantizedGaussian(0, 255), np.ravel(mean), std


def _push(stack, x, chain, ask):
  """Pushes the values x [n] of a batch; returns the fewest words on the stack during that."""
  z, fewest = _take_q(stack, *_q(chain, 0, x.astype(np.float64))), stack.num_words()
  model, *parameters = _levels(*_p(chain, 0, z, ask)[:2])
  stack.encode_reverse(x.astype(np.int32), model, *parameters)
  for i in range(1, len(chain.width)):
    noisier = _take_q(stack, *_q(chain, i, z))
    fewest = min(fewest, stack.num_words())
    _put(stack, z, *_p(chain, i, noisier, ask))
    z = noisier
  _put(stack, z, 0 * z, chain.table.sigma[-1], chain.width[-1])
  return fewest


def _pop(stack, n, chain, ask):
  """Pops the values of a batch: `_push` backwards, line by line."""
  z = _get(stack, np.zeros(n), chain.table.sigma[-1], chain.width[-1])
  for i in range(len(chain.width) - 1, 0, -1):
    cleaner = _get(stack, *_p(chain, i, z, ask))
    _return_q(stack, z, *_q(chain, i, cleaner))
    z = cleaner
  model, *parameters = _levels(*_p(chain, 0, z, ask)[:2])
  x = stack.decode(model, *parameters)
  _return_q(stack, z, *_q(chain, 0, x.astype(np.float64)))
  return x.astype(np.uint8)


def _asking(estimate, ids, shape, batch, learned):
  """ask(values [n], level) -> (x0, share), flat float64, by the network, which is always called with a whole batch."""
  def ask(values, level):
    x = np.zeros((batch, *shape), np.float32)
    x[:len(ids)] = values.reshape(len(ids), *shape)
    padded = np.append(ids, np.full(batch - len(ids), ids[-1]))
    pred = estimate(x, Noise(*map(np.float32, level)), padded)
    flat = lambda a: np.asarray(a, np.float64)[:len(ids)].ravel()
    return flat(pred.x0), flat(learned_variance(pred)) if learned else None
  return ask


# ---- files
def _random(words):
  """Reproducible random words: raw bits of a generator that NumPy guarantees never to change."""
  return np.random.Philox(0).random_raw((words + 1) // 2).view(np.uint32)[:words]


def _checksum(images):
  return hashlib.sha256(images.tobytes()).hexdigest()[:16]


def _fingerprint(chain, model):
  digest = hashlib.sha256(model.encode())
  for array in (*chain.table, chain.width, chain.share, np.array([chain.learned])):
    digest.update(np.asarray(array, np.float64).tobytes())
  return digest.hexdigest()[:16]


def encode(images, estimate: Callable, chain, *, model, batch=8, note=None):
  """Compresses images.

  Args:
    images: uint8 [N, ...].
    estimate: (x float32 [batch, ...], level, ids int [batch]) -> Pred of the images with these indices in `images`;
      jitted, since decoding must run the same program. Without guidance.
    chain: from `plan`.
    model: a text that identifies the weights, such as a hash.
    batch: images at a time: fewer need fewer initial random bits.
    note: JSON stored in the file: what is needed to construct `estimate` and `chain` again.
  Returns:
    (bytes of a file, Cost).
  Raises:
    InputError: not images, or a model that cannot code them.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim < 2 or not images.size or not isinstance(batch, int) or batch < 1:
    raise InputError(f'expected uint8 images [N, ...] and a batch of at least 1, got {images.dtype} '
                     f'{list(images.shape)} and batch={batch!r}')
  shape, starts = images.shape[1:], range(0, len(images), batch)
  words = WORDS * min(batch, len(images)) * int(np.prod(shape))
  stack = _library().stack.AnsCoder(_random(words), True)  # sealed
  fewest, bits = stack.num_words(), [stack.num_valid_bits()]
  for start in starts:
    ids = np.arange(start, min(start + batch, len(images)))
    ask = _asking(estimate, ids, shape, batch, chain.learned)
    fewest = min(fewest, _push(stack, images[ids].ravel(), chain, ask))
    bits.append(stack.num_valid_bits())
  unused = fewest - 4  # the last two words on a stack are its state
  if unused < 0:
    raise InputError('the first images need more random bits than available: the model does not fit these images')
  head = dict(shape=list(images.shape), batch=batch, initial=words - unused, pictures=_checksum(images),
              fingerprint=_fingerprint(chain, model), note=note)
  head = json.dumps(head, separators=(',', ':')).encode()
  body = stack.get_compressed()[unused:].astype('<u4').tobytes()
  data = MAGIC + struct.pack('<I', len(head)) + head + body
  return data + struct.pack('<I', zlib.crc32(data)), Cost(np.diff(bits), 32 * (words - unused))


def header(data):
  """The header of a file: shape, batch, initial (random words), fingerprint, note ..; `words` is the rest, uint32.

  Raises:
    InputError: not such a file, or a damaged one.
  """
  start = len(MAGIC) + 4
  if data[:len(MAGIC)] != MAGIC:
    raise InputError('this is not a file of compressed images: it does not begin with ' + MAGIC.decode())
  if len(data) < start + 4 or zlib.crc32(data[:-4]) != struct.unpack('<I', data[-4:])[0]:
    raise InputError('the file of compressed images is damaged: its checksum does not match; copy it again')
  end = start + struct.unpack('<I', data[start - 4:start])[0]
  return json.loads(data[start:end]) | dict(words=np.frombuffer(data[end:-4], '<u4').astype(np.uint32))


def decode(data, estimate: Callable, chain, *, model):
  """The images of a file, uint8 [N, ...]; arguments as for `encode`.

  Raises:
    InputError: a damaged file, another model or chain, or arithmetic that differs from the encoder's.
  """
  head = header(data)
  if head['fingerprint'] != _fingerprint(chain, model):
    raise InputError('these images were compressed with another model, or with other levels or variances; '
                     'decode them with the same')
  shape, batch = head['shape'], head['batch']
  stack, images = _library().stack.AnsCoder(head['words']), np.zeros(shape, np.uint8)
  words = WORDS * min(batch, shape[0]) * int(np.prod(shape[1:]))
  try:
    for start in reversed(range(0, shape[0], batch)):
      ids = np.arange(start, min(start + batch, shape[0]))
      ask = _asking(estimate, ids, tuple(shape[1:]), batch, chain.learned)
      images[ids] = _pop(stack, images[ids].size, chain, ask).reshape(images[ids].shape)
    rest = _library().stack.AnsCoder(_random(words)[words - head['initial']:], True).get_compressed()
    intact = np.array_equal(stack.get_compressed(), rest) and _checksum(images) == head['pictures']
  except (KeyError, InputError):  # a value to which the model gives no probability
    intact = False
  if not intact:
    raise InputError('the images were decoded wrongly: the network computes other values than during compression; use '
                     'the same machine, versions and number of devices')
  return images
