r"""Images per second of the U-Net: forward pass, training step, DDIM sampling; compared with PyTorch's diffusers.

  python -m experiments.benchmarks.speed                          16x16x3, channels 32-64-128, batch 64
  python -m experiments.benchmarks.speed --size=32 --batch=32     larger images
  python -m experiments.benchmarks.speed --dtype=bfloat16         ours in bfloat16 (PyTorch stays in float32)
  python -m experiments.benchmarks.speed --plain                  adds ours with the plain form of the layers

The networks take turns and the medians are compared, so other load on the machine affects both; still, measure on a
quiet machine. The training step is forward, backward, clipping, AdamW and EMA; sampling is DDIM without guidance. If
torch and diffusers are installed, diffusers' UNet2DModel runs with the same widths (the table gives both parameter
counts), channels last, eager, on all cores. Nothing is saved. The result is a Markdown table on stdout.

The share of the peak is model FLOP utilisation, for both networks: FLOPs per second, counted from the plain form of
our network (matrix products and convolutions), over the best rate of float32 matrix products on all cores of this
machine in the same run, in JAX or in PyTorch.
"""
import argparse
import importlib.util
import os
import statistics
import time
from functools import partial

from diffusion.system import platform


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--size', type=int, default=16, help='height and width of the images (default: 16)')
  add('--colours', type=int, default=3, help='channels of the images (default: 3)')
  add('--channels', type=int, default=32, help='width of the first level (default: 32)')
  add('--multipliers', type=int, nargs='+', default=[1, 2, 4], help='widths of the levels (default: 1 2 4)')
  add('--blocks', type=int, default=2, help='residual blocks per level (default: 2)')
  add('--attention', type=int, default=8, help='height of the level with attention, besides the middle (default: 8)')
  add('--batch', type=int, default=64, help='images in a forward pass and a training step (default: 64)')
  add('--samples', type=int, default=8, help='images sampled at once (default: 8)')
  add('--steps', type=int, default=50, help='DDIM steps (default: 50)')
  add('--rounds', type=int, default=7, help='turns of each network (default: 7)')
  add('--devices', type=int, default=None, help='CPU devices (default: one per core)')
  add('--dtype', choices=['float32', 'bfloat16'], default='float32', help='of our network (default: float32)')
  add('--plain', action='store_true', help='also measure ours with the plain form of the layers')
  return parser.parse_args()


def our_step(net, params, mesh):
  """(state, step): step(state, images, key) -> (state, metrics), jitted; it donates the state."""
  import jax
  import optax
  from diffusion.core import gaussian, schedules
  from diffusion.objectives import denoising, timesteps, weighting
  from diffusion.objectives.base import Objective
  from diffusion.objectives.gaussian_diffusion import MSE
  from diffusion.system import sharding
  from diffusion.training.loop import train_step
  from diffusion.training.state import init_state
  draw = timesteps.draw_levels(timesteps.stratified(), schedules.cosine())
  kind = dict(draw=draw, predict=gaussian.predict_eps(), weight=weighting.one())

  def loss(key, params, x0, cond, *, train, **unused):
    return denoising.loss(key, net.apply, params, x0, cond, train=train, **kind)

  optimizer = optax.chain(optax.clip_by_global_norm(1.), optax.adamw(1e-3))
  step = partial(train_step, encode=lambda frozen, key, batch: (batch, None), optimizer=optimizer,
                 objective=Objective('denoising', None, loss, None, MSE), ema=lambda step: .999)
  place = sharding.replicated(mesh)
  return (jax.device_put(init_state(params, optimizer), place),
          jax.jit(step, donate_argnums=0, out_shardings=(place, place)))


def our_sampler(net, steps, shape):
  """sample(params, keys): DDIM without guidance, jitted."""
  import jax
  from diffusion import samplers
  from diffusion.core import gaussian, grids, schedules
  levels = grids.trailing(steps)(schedules.cosine())

  @jax.jit
  def sample(params, keys):
    x = samplers.prior(keys, levels, shape)
    denoise = gaussian.denoiser(net.apply, params, None, gaussian.predict_eps())
    return samplers.sample(keys, denoise, samplers.ddim(), levels, x)
  return sample


def ours(options, fast=None):
  """Our U-Net with our training step and sampler.

  Returns:
    {'parameters': int, 'flops': {job: int}, 'forward': run, 'train': run, 'sample': run}; run() does the job once and
    waits for the result, flops counts the operations of the job.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  from diffusion import nets, samplers
  from diffusion.nets.unet import UNet
  from diffusion.system import flops, sharding
  mesh, shape = sharding.make_mesh(), (options.size, options.size, options.colours)
  net = nets.make(UNet(
    channels=options.channels, multipliers=tuple(options.multipliers), blocks=options.blocks,
    dtype=options.dtype, attention=(options.attention,), fast=fast, constrain=sharding.constrain(mesh)))
  ones = np.ones((options.batch, *shape), np.float32), np.ones(options.batch, np.float32)
  images, moments = sharding.put_batch(ones, mesh)
  state, step = our_step(net, net.init(jax.random.key(0), shape=(1, *shape)), mesh)
  params = jax.tree.map(jnp.copy, state.params)  # the state itself is donated
  keys = jax.device_put(samplers.sample_keys(0, np.arange(options.samples)), sharding.batch_sharding(mesh))
  forward, sample = jax.jit(net.apply), our_sampler(net, options.steps, shape)

  def train():
    nonlocal state
    state, metrics = step(state, images, jax.random.key(0))
    jax.block_until_ready((state, metrics))

  return dict(
    parameters=sum(a.size for a in jax.tree.leaves(params)),
    flops=dict(forward=flops.flops(net.apply, params, images, moments),
               train=flops.flops(step, state, images, jax.random.key(0)), sample=flops.flops(sample, params, keys)),
    forward=lambda: jax.block_until_ready(forward(params, images, moments)),
    train=train,
    sample=lambda: jax.block_until_ready(sample(params, keys)))


def diffusers_unet(options):
  """diffusers' UNet2DModel with the widths of ours, channels last."""
  import torch
  from diffusers import UNet2DModel
  attend = [options.size >> i == options.attention for i in range(len(options.multipliers))]
  model = UNet2DModel(
    sample_size=options.size, in_channels=options.colours, out_channels=options.colours,
    block_out_channels=[options.channels * m for m in options.multipliers], layers_per_block=options.blocks,
    down_block_types=['AttnDownBlock2D' if a else 'DownBlock2D' for a in attend],
    up_block_types=['AttnUpBlock2D' if a else 'UpBlock2D' for a in reversed(attend)],
    norm_num_groups=8, attention_head_dim=None, resnet_time_scale_shift='scale_shift')
  return model.to(memory_format=torch.channels_last)


def _cosine(t):
  """(alpha, sigma) of the cosine schedule at torch times."""
  import torch
  return torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)


def their_step(options, model, images):
  """A function that does one training step of a PyTorch model, with AdamW, clipping and an average of the weights."""
  import torch
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
  average = [p.detach().clone() for p in model.parameters()]

  def train():
    x0, eps, t = images(options.batch), images(options.batch), torch.rand(options.batch)
    alpha, sigma = (a[:, None, None, None] for a in _cosine(t))
    loss = (model(alpha * x0 + sigma * eps, 1000 * t).sample - eps).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, list(model.parameters()), .001)
  return train


def theirs(options):
  """diffusers' UNet2DModel in PyTorch: the same dictionary as `ours`, without flops."""
  import torch
  torch.set_num_threads(os.cpu_count())
  model = diffusers_unet(options)

  def images(n):
    x = torch.randn(n, options.colours, options.size, options.size)
    return x.contiguous(memory_format=torch.channels_last)

  @torch.inference_mode()
  def sample():
    x = images(options.samples)
    times = torch.linspace(.999, 0, options.steps + 1)
    for t, s in zip(times, times[1:]):
      (alpha, sigma), (alpha_s, sigma_s) = _cosine(t), _cosine(s)
      eps = model(x, (1000 * t).expand(len(x))).sample
      x = alpha_s * (x - sigma * eps) / alpha + sigma_s * eps

  x, t = images(options.batch), torch.ones(options.batch)

  @torch.inference_mode()
  def forward():
    model(x, t)

  parameters = sum(p.numel() for p in model.parameters())
  return dict(parameters=parameters, forward=forward, train=their_step(options, model, images), sample=sample)


def measure(contenders, job, rounds):
  """Median seconds of contenders[name][job](), taking turns; the first call compiles and does not count."""
  seconds = {name: [] for name in contenders}
  for contender in contenders.values():
    contender[job]()
  for _ in range(rounds):
    for name, contender in contenders.items():
      start = time.perf_counter()
      contender[job]()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def peak(seconds=1., sizes=(512, 1024, 2048)):
  """The best float32 FLOP/s of matrix products on this machine, in JAX on all devices or in PyTorch if installed."""
  import jax
  import numpy as np
  from diffusion.system import sharding
  mesh = sharding.make_mesh()
  product, products = jax.jit(lambda a: a @ a), []
  for size in sizes:
    a = jax.device_put(np.ones((mesh.size, size, size), np.float32), sharding.batch_sharding(mesh))
    products.append((2 * mesh.size * size ** 3, lambda a=a: jax.block_until_ready(product(a))))
    if importlib.util.find_spec('torch'):
      import torch
      b = torch.ones(size, size)
      products.append((2 * size ** 3, lambda b=b: b @ b))
  best = 0.
  for flops, run in products:
    run()
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
      run()
      best = max(best, flops / (time.perf_counter() - start))
  return best


def table(contenders, medians, images, reference, flops, best):
  """Markdown: images/s of each network and job, the share of `best` FLOP/s, the speed relative to the reference."""
  head = '| network | parameters | ' + ' | '.join(f'{job}, images/s' for job in images) + ' |'
  lines = [head, '|---' * (2 + len(images)) + '|']
  for name, contender in contenders.items():
    cells = []
    for job, number in images.items():
      seconds = medians[job]
      compared = reference in contenders and name != reference
      ratio = f', {seconds[reference] / seconds[name]:.2f} x' if compared else ''
      cells.append(f'{number / seconds[name]:.4g} ({flops[job] / seconds[name] / best:.0%}{ratio})')
    lines.append(f'| {name} | {contender["parameters"]:,} | ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def main():
  options = arguments()
  platform.start(options.devices)
  contenders, plain = {'ours': ours(options)}, ours(options, fast=False)
  if options.plain:
    contenders['ours, plain layers'] = plain
  reference = 'PyTorch diffusers'
  if importlib.util.find_spec('torch') and importlib.util.find_spec('diffusers'):
    contenders[reference] = theirs(options)
  images = dict(forward=options.batch, train=options.batch, sample=options.samples)
  medians = {job: measure(contenders, job, options.rounds) for job in images}
  best = peak()
  print(table(contenders, medians, images, reference, plain['flops'], best))
  widths = [options.channels * m for m in options.multipliers]
  shape = f'{options.size}x{options.size}x{options.colours}, channels {widths}, batch {options.batch}'
  print(f'\n{shape}; {options.steps} DDIM steps of {options.samples} images; {options.dtype}; '
        f'medians of {options.rounds}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores. In brackets: the '
        f'share of the peak, {best / 1e9:.0f} GFLOP/s in a float32 matrix product, and the speed relative to PyTorch.')


if __name__ == '__main__':
  main()
