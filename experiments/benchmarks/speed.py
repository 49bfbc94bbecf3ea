r"""Images per second of the U-Net: forward pass, training step and DDIM sampling, beside PyTorch's diffusers where it is installed.

  python -m experiments.benchmarks.speed                          16x16x3, channels 32-64-128, batch 64
  python -m experiments.benchmarks.speed --size=32 --batch=32     larger pictures
  python -m experiments.benchmarks.speed --dtype=bfloat16         ours in bfloat16 (PyTorch stays in float32)
  python -m experiments.benchmarks.speed --plain                  adds ours with the plain form of the layers

The contenders take turns in one run and the medians are compared, so the load of the machine falls on both. The training step is forward,
backward, clipping, AdamW and EMA; sampling is DDIM without guidance. diffusers' UNet2DModel has the same shape (the table gives both parameter
counts), channels last, eager, on all cores. Nothing is trained and nothing is saved. The result is a Markdown table on stdout.
"""
import argparse
import importlib.util
import os
import statistics
import time
from functools import partial

from diffusion import platform


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--size', type=int, default=16, help='height and width of the pictures (default: 16)')
  parser.add_argument('--colours', type=int, default=3, help='channels of the pictures (default: 3)')
  parser.add_argument('--channels', type=int, default=32, help='width of the first level (default: 32)')
  parser.add_argument('--multipliers', type=int, nargs='+', default=[1, 2, 4], help='widths of the levels (default: 1 2 4)')
  parser.add_argument('--blocks', type=int, default=2, help='residual blocks a level (default: 2)')
  parser.add_argument('--attention', type=int, default=8, help='height at which to attend, besides the middle (default: 8)')
  parser.add_argument('--batch', type=int, default=64, help='pictures in a forward pass and a training step (default: 64)')
  parser.add_argument('--samples', type=int, default=8, help='pictures sampled at once (default: 8)')
  parser.add_argument('--steps', type=int, default=50, help='DDIM steps (default: 50)')
  parser.add_argument('--rounds', type=int, default=7, help='turns of each contender (default: 7)')
  parser.add_argument('--devices', type=int, default=None, help='CPU devices (default: one a core)')
  parser.add_argument('--dtype', choices=['float32', 'bfloat16'], default='float32', help="of our activations (default: float32)")
  parser.add_argument('--plain', action='store_true', help='also measure ours with the plain form of the layers')
  return parser.parse_args()


def ours(options, fast=None):
  """Our U-Net with our training step and sampler: {'parameters': int, 'forward': run, 'train': run, 'sample': run}.

  A run does its work once and returns when it is done.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  import optax
  from diffusion import grids, losses, nets, predict, samplers, schedules, sharding
  from diffusion.denoise import denoiser
  from diffusion.nets.unet import UNet
  from diffusion.state import init_state, train_step

  mesh = sharding.make_mesh()
  init, net = nets.make(UNet(channels=options.channels, multipliers=tuple(options.multipliers), blocks=options.blocks, fast=fast,
                             attention=(options.attention,), dtype=options.dtype, constrain=sharding.constrain(mesh)))
  shape = (options.size, options.size, options.colours)
  images, times = sharding.put_batch((np.ones((options.batch, *shape), np.float32), np.ones(options.batch, np.float32)), mesh)

  draw = losses.drawn_from(losses.stratified(), schedules.cosine())
  def loss(key, params, x0, cond, train):
    return losses.loss(key, net, params, x0, cond, draw=draw, predict=predict.eps(), weight=losses.one(), train=train)

  optimizer = optax.chain(optax.clip_by_global_norm(1.), optax.adamw(1e-3))
  step = partial(train_step, encode=lambda key, batch: (batch, None), loss=loss, optimizer=optimizer, ema=lambda step: .999)
  place = sharding.replicated(mesh)
  step = jax.jit(step, donate_argnums=0, out_shardings=(place, place))
  state = jax.device_put(init_state(jax.random.key(0), partial(init, shape=(1, *shape)), optimizer), place)
  params = jax.tree.map(jnp.copy, state.params)  # the state itself is donated

  levels = grids.trailing(options.steps)(schedules.cosine())
  keys = jax.device_put(samplers.sample_keys(0, np.arange(options.samples)), sharding.batched(mesh))

  @jax.jit
  def sample(params, keys):
    x = samplers.prior(keys, levels, shape)
    return samplers.sample(keys, denoiser(net, params, None, predict.eps()), samplers.ddim(), levels, x)

  def train():
    nonlocal state
    state, metrics = step(state, images, jax.random.key(0))
    jax.block_until_ready((state, metrics))

  forward = jax.jit(net)
  return dict(
    parameters=sum(a.size for a in jax.tree.leaves(params)),
    forward=lambda: jax.block_until_ready(forward(params, images, times)),
    train=train,
    sample=lambda: jax.block_until_ready(sample(params, keys)))


def theirs(options):
  """diffusers' UNet2DModel in PyTorch: the same dictionary as `ours`."""
  import torch
  from diffusers import UNet2DModel

  torch.set_num_threads(os.cpu_count())
  levels = len(options.multipliers)
  attend = [options.size >> i == options.attention for i in range(levels)]
  model = UNet2DModel(
    sample_size=options.size, in_channels=options.colours, out_channels=options.colours,
    block_out_channels=[options.channels * m for m in options.multipliers], layers_per_block=options.blocks,
    down_block_types=['AttnDownBlock2D' if a else 'DownBlock2D' for a in attend],
    up_block_types=['AttnUpBlock2D' if a else 'UpBlock2D' for a in reversed(attend)],
    norm_num_groups=8, attention_head_dim=None, resnet_time_scale_shift='scale_shift').to(memory_format=torch.channels_last)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
  average = [p.detach().clone() for p in model.parameters()]

  def pictures(n):
    return torch.randn(n, options.colours, options.size, options.size).contiguous(memory_format=torch.channels_last)

  def cosine(t):  # alpha, sigma
    return torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)

  def train():
    x0, eps, t = pictures(options.batch), pictures(options.batch), torch.rand(options.batch)
    alpha, sigma = (a[:, None, None, None] for a in cosine(t))
    loss = (model(alpha * x0 + sigma * eps, 1000 * t).sample - eps).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, list(model.parameters()), .001)

  @torch.inference_mode()
  def sample():
    x = pictures(options.samples)
    times = torch.linspace(.999, 0, options.steps + 1)
    for t, s in zip(times, times[1:]):
      (alpha, sigma), (alpha_s, sigma_s) = cosine(t), cosine(s)
      eps = model(x, (1000 * t).expand(len(x))).sample
      x = alpha_s * (x - sigma * eps) / alpha + sigma_s * eps

  x, t = pictures(options.batch), torch.ones(options.batch)

  @torch.inference_mode()
  def forward():
    model(x, t)

  return dict(parameters=sum(p.numel() for p in model.parameters()), forward=forward, train=train, sample=sample)


def measure(contenders, job, rounds):
  """Median seconds of contenders[name][job](), the contenders taking turns; the first call compiles and is not counted."""
  seconds = {name: [] for name in contenders}
  for contender in contenders.values():
    contender[job]()
  for _ in range(rounds):
    for name, contender in contenders.items():
      start = time.perf_counter()
      contender[job]()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def table(contenders, medians, images, reference):
  """Markdown: images/s of each contender and job, and how many times faster than the reference."""
  lines = ['| network | parameters | ' + ' | '.join(f'{job}, images/s' for job in images) + ' |', '|---' * (2 + len(images)) + '|']
  for name, contender in contenders.items():
    cells = []
    for job, number in images.items():
      ratio = f' ({medians[job][reference] / medians[job][name]:.2f} x)' if reference in contenders and name != reference else ''
      cells.append(f'{number / medians[job][name]:.4g}{ratio}')
    lines.append(f'| {name} | {contender["parameters"]:,} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def main():
  options = arguments()
  platform.start(options.devices)
  contenders = {'ours': ours(options)}
  if options.plain:
    contenders['ours, plain layers'] = ours(options, fast=False)
  reference = 'PyTorch diffusers'
  if importlib.util.find_spec('torch') and importlib.util.find_spec('diffusers'):
    contenders[reference] = theirs(options)
  images = dict(forward=options.batch, train=options.batch, sample=options.samples)
  medians = {job: measure(contenders, job, options.rounds) for job in images}
  print(table(contenders, medians, images, reference))
  print(f'\n{options.size}x{options.size}x{options.colours}, channels {[options.channels * m for m in options.multipliers]}, batch {options.batch}, '
        f'{options.steps} DDIM steps of {options.samples} pictures, {options.dtype}; medians of {options.rounds}, '
        f'load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; in brackets: times faster than PyTorch.')


if __name__ == '__main__':
  main()
