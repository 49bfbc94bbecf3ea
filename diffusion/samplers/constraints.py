"""Editing with any solver: constraints on samplers (on denoisers: core/posterior.py), and starting points.

A mask is 1 where x is generated and 0 where it is known; known values and masks broadcast against x.

  inpaint   replaces the known pixels after each step; wraps any Sampler
  repaint   the same with resampling: goes back to noisier levels, so that generated and known pixels become consistent
  sdedit    starts from an image with part of the noise (image to image)
  invert    finds the noise from which DDIM, or DPM-Solver++(2M), generates an image
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import samplers
from diffusion.core.gaussian import Noise, q_sample, take
from diffusion.errors import InputError
from diffusion.samplers.forms import data, midpoint

# Folded into the keys: separate streams, beyond the step indices of any sampler.
_KNOWN, _UP, _TURN = 2 ** 31, 2 ** 31 + 1, 2 ** 30


def _stream(keys, number):
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


# ---- constraints on samplers
def inpaint(sampler, known, mask):
  """Replaces the known pixels after each step by a fresh sample of q(x_s | known) (arXiv:2011.13456, appendix I.2).

  At the clean end they are exactly the known ones. The samples do not depend on the generated pixels, which
  therefore follow the known ones less than they should; repaint and ddnm are two remedies.

  Args:
    sampler: any Sampler whose x is at the level step.s after a step. A sampler that wraps another, such as
      samplers.self_conditioned, is applied to the result of this one.
    known: the image, in the range of x0; its pixels where the mask is 1 are ignored.
    mask: 1 where pixels are generated, 0 where they are known.
  Returns:
    A Sampler with the same states and plan. Planning raises InputError for a method that skips levels of its grid.
  """
  def plan(levels):
    rows, S = sampler.plan(levels), len(levels.logsnr) - 1
    if len(rows.h) < S:
      raise InputError(f'this sampler crosses the {S} steps of its grid in {len(rows.h)}, but known pixels must be '
                       'replaced at every level: use a sampler that stops at each, such as ddim')
    return rows
  def step(keys, denoise, state, step):
    state = sampler.step(keys, denoise, state, step)
    z = samplers.gaussian(_stream(keys, _KNOWN), step.index, state.x)
    return state._replace(x=jnp.where(mask, state.x, step.s.alpha * known + step.s.sigma * z))
  return samplers.Sampler(sampler.init, step, plan)


class Turn(NamedTuple):
  """After the step of a row of RePaint x becomes ratio * x + std * z; ratio 1 and std 0 leave it unchanged."""
  ratio: np.ndarray
  std: np.ndarray
  number: np.ndarray  # of the pass, so that each has its own noise
  inner: tuple        # the extra of the wrapped sampler


def repaint(sampler, known, mask, jump=10, repeats=10):
  """Inpainting that repeats each `jump` steps `repeats` times, adding noise in between (RePaint, arXiv:2201.09865).

  jump=1 is algorithm 1 of the paper, which uses DDPM. Going back is the forward process, q(x_t | x_s),
  and costs nothing: it is part of the row before it, so that S steps of a solver with one evaluation cost repeats *
  (S - 1) + 1 evaluations. The clean end is reached once. A solver with memory restarts on each pass, whose plan
  uses no history at first. With many levels and repeats the result is a sample of p(generated | known); with few
  levels DDPM's small variance gives too little diversity, and DDIM or the large variance does better.

  Args:
    sampler, known, mask: as for inpaint.
    jump: steps in a pass.
    repeats: number of passes over the same steps; 1 is inpaint.
  Returns:
    A Sampler with the same states and a longer plan.
  Raises:
    InputError: jump or repeats below 1.
  """
  if jump < 1 or repeats < 1:
    raise InputError(f'repaint(jump={jump!r}, repeats={repeats!r}): expected at least 1 of each')
  replaced = inpaint(sampler, known, mask)

  def step(keys, denoise, state, step):
    turn, keys = step.extra, _stream(keys, step.extra.number)
    state = replaced.step(keys, denoise, state, step._replace(extra=turn.inner))
    z = samplers.gaussian(_stream(keys, _UP), step.index, state.x)
    return state._replace(x=turn.ratio * state.x + turn.std * z)
  return samplers.Sampler(sampler.init, step, lambda levels: _walk(replaced, levels, jump, repeats))


def _walk(sampler, levels, jump, repeats):
  """The rows of RePaint: the sampler's own plan for each pass, with the return to its first level on the last row."""
  last = max(len(levels.logsnr) - 2, 0)  # the cleanest level with noise
  passes = [(a, min(a + jump, last)) for a in range(0, last, jump) for _ in range(repeats)] or [(0, 0)]
  rows = []
  for number, (a, b) in enumerate(passes):
    final = number == len(passes) - 1
    plan = sampler.plan(take(levels, slice(a, None if final else b + 1)))
    ratio, std = np.ones(len(plan.h)), np.zeros(len(plan.h))
    if not final and passes[number + 1][0] == a:
      ratio[-1] = levels.alpha[a] / levels.alpha[b]
      # sigma_a^2 - ratio^2 * sigma_b^2, without the cancellation
      std[-1] = levels.sigma[a] * np.sqrt(-np.expm1(levels.logsnr[a] - levels.logsnr[b]))
    numbers = np.full(len(plan.h), _TURN + number, np.uint32)
    rows.append(plan._replace(extra=Turn(ratio, std, numbers, plan.extra)))
  return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


# ---- starting points
def sdedit(keys, levels, x0, strength):
  """The last steps of a grid, and an image noised to the first of them (SDEdit, arXiv:2108.01073, algorithm 1).

  Args:
    keys: one key per sample, [B].
    levels: float64 Noise[S+1] from noise to clean.
    x0: the image(s) [B, ...].
    strength: the share of the S steps that is sampled, rounded, in [0, 1]. 1 ignores the image: the start is
      samplers.prior with the same keys. 0 leaves nothing to sample: the grid is CLEAN alone, and the start is x0.
  Returns:
    (levels [n + 1], start [B, ...]) with n = round(strength * S).
  Raises:
    InputError: strength outside [0, 1].
  """
  if not 0 <= strength <= 1:
    raise InputError(f'strength={strength!r}: expected a number from 0 (the image itself) to 1 (nothing of it)')
  S = len(levels.logsnr) - 1
  part = take(levels, slice(S - int(np.floor(strength * S + .5)), None))
  n = len(part.logsnr) - 1
  if n == S:
    return part, samplers.prior(keys, levels, x0.shape[1:])
  if n == 0:
    return part, x0
  return part, q_sample(x0, Noise(*map(np.float32, take(part, 0))), samplers.gaussian(keys, 0, x0))


def invert(denoise, levels, x0, order=1):
  """The noise from which an ODE solver generates an image: its steps in reverse.

  Order 1 is DDIM with eta = 0 (arXiv:2010.02502, section 4.3), order 2 DPM-Solver++(2M) (arXiv:2211.01095, algorithm
  2; diffusers' inverse scheduler, which from 15 steps on is the same).

  At the clean end eps is 0/0, so the image is taken as the mean of the cleanest level with noise. Sampling from the
  result reconstructs the image with an error that halves as the number of steps doubles, or falls to a quarter with
  order 2, if the denoiser is smooth, as the exact one of Gaussian data. With a trained network, whose x0 jumps between
  images near the clean end, the error levels off: on the sprites of the default config at 2 to 15 of 255, from 50 steps
  on, and far higher without clip. Guidance above 1 makes it large: invert with the plain conditional denoiser.

  Args:
    denoise: (x, noise) -> Pred.
    levels: float64 Noise[S+1] from noise to clean.
    x0: the image(s) [B, ...].
    order: 1 or 2.
  Returns:
    x at levels[0], [B, ...].
  Raises:
    InputError: another order.
  """
  if order not in (1, 2):
    raise InputError(f'invert(order={order!r}): expected 1 or 2')
  def up(state, ends):
    (x, before), (s, t, c) = state, ends
    pred = denoise(x, s)
    x = t.alpha * pred.x0 + t.sigma * pred.eps + c * (before - pred.x0)
    return (x, pred.x0), None
  noisy, dtype = take(levels, slice(0, -1)), samplers.compute_dtype(x0)
  x = float(noisy.alpha[-1]) * jnp.asarray(x0, dtype)
  S = len(noisy.logsnr) - 1
  if not S:
    return x
  down, c = samplers.steps(noisy), np.zeros(S)
  for i in range(1 if np.isneginf(noisy.logsnr[0]) else 0, S - 1 if order == 2 else 0):
    nodes = [take(noisy, i + k) for k in (1, 2)]  # none into a level without signal
    c[i] = midpoint(data(), nodes[0], take(noisy, i), nodes)[1]
  ends = jax.tree.map(lambda a: jnp.asarray(a, dtype), (down.s, down.t, c))
  return jax.lax.scan(up, (x, jnp.zeros(x.shape, dtype)), ends, reverse=True)[0][0]
