r"""Trains diffusers' U-Net in PyTorch for some seconds and draws samples of it: the other side of quality.py.

  python -m experiments.benchmarks.quality_torch --data=images.npz --out=samples.npz --seconds=300

The seconds count from the start of the process. `--data` holds uint8 images [N, H, W, C] and labels [N]; `--out` gets
images and labels of as many samples. As in diffusers' own example of unconditional training: AdamW with warm-up and a
cosine decay, an average of the weights, and DDIMScheduler for noise and samples; channels last, eager, on all cores.
"""
import argparse
import time

STARTED = time.monotonic()
PILOT = 10  # steps whose time says how many fit


def arguments():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  add = parser.add_argument
  add('--data', required=True, help='.npz of the images and labels to train on')
  add('--out', required=True, help='.npz of the samples')
  add('--seconds', type=float, default=300., help='of training, from the start of the process (default: 300)')
  add('--samples', type=int, default=1000, help='images to draw, after that time (default: 1000)')
  add('--channels', type=int, nargs='+', default=[32, 64, 64], help='widths of the levels (default: 32 64 64)')
  add('--batch', type=int, default=64, help='images in a step (default: 64)')
  add('--rate', type=float, default=1e-3, help='peak learning rate (default: 1e-3)')
  add('--guidance', type=float, default=2., help='scale of classifier-free guidance (default: 2)')
  add('--eta', type=float, default=1., help='of DDIM (default: 1)')
  add('--steps', type=int, default=50, help='of the sampler (default: 50)')
  add('--seed', type=int, default=0)
  return parser.parse_args()


def make_model(options, images, classes):
  """UNet2DModel with attention at the coarsest level; class `classes` is the null condition."""
  import torch
  from diffusers import UNet2DModel
  levels = len(options.channels)
  kinds = ['DownBlock2D'] * (levels - 1) + ['AttnDownBlock2D'], ['AttnUpBlock2D'] + ['UpBlock2D'] * (levels - 1)
  model = UNet2DModel(
    sample_size=images.shape[1], in_channels=images.shape[3], out_channels=images.shape[3], layers_per_block=1,
    block_out_channels=options.channels, down_block_types=kinds[0], up_block_types=kinds[1], norm_num_groups=8,
    num_class_embeds=classes + 1, resnet_time_scale_shift='scale_shift')
  return model.to(memory_format=torch.channels_last)


def make_scheduler():
  from diffusers import DDIMScheduler
  return DDIMScheduler(beta_schedule='squaredcos_cap_v2', prediction_type='v_prediction', timestep_spacing='trailing',
                       rescale_betas_zero_snr=True, clip_sample=True)


def train(options, model, scheduler, images, labels, classes):
  """(averaged model, steps taken): trains until the time is up; the rate decays over as many steps as fit."""
  import torch
  average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.998))
  optimizer = torch.optim.AdamW(model.parameters(), lr=options.rate)
  x, y = torch.from_numpy(images), torch.from_numpy(labels).long()
  step, total, begun = 0, None, None
  while total is None or step < total:
    index = torch.randint(len(x), (options.batch,))
    x0 = (x[index].permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    label = torch.where(torch.rand(options.batch) < .1, classes, y[index])
    noise, t = torch.randn_like(x0), torch.randint(1000, (options.batch,))
    for group in optimizer.param_groups:
      group['lr'] = options.rate * float(_decay(step, total))
    out = model(scheduler.add_noise(x0, noise, t), t, class_labels=label).sample
    loss = (out - scheduler.get_velocity(x0, noise, t)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
    optimizer.step()
    average.update_parameters(model)
    step += 1
    begun = time.monotonic() if step == 1 else begun  # the first one warms up
    if step == 1 + PILOT:
      now = time.monotonic()
      total = step + int(max(0., options.seconds - (now - STARTED)) / ((now - begun) / PILOT))
  return average.module.eval(), step


def _decay(step, total, warmup=100):
  import math
  return min(1, (step + 1) / warmup) * (.5 + .5 * math.cos(math.pi * step / total) if total else 1)


def draw(options, model, scheduler, shape, labels, classes, batch=100):
  """uint8 images [n, H, W, C] of labels [n], with classifier-free guidance."""
  import numpy as np
  import torch
  scheduler.set_timesteps(options.steps)
  parts = []
  with torch.inference_mode():
    for first in range(0, len(labels), batch):
      label = torch.from_numpy(labels[first:first + batch]).long()
      both = torch.cat([label, torch.full_like(label, classes)])
      x = torch.randn(len(label), shape[2], *shape[:2]).contiguous(memory_format=torch.channels_last)
      for t in scheduler.timesteps:
        asked, null = model(torch.cat([x, x]), t, class_labels=both).sample.chunk(2)
        x = scheduler.step(null + options.guidance * (asked - null), t, x, eta=options.eta).prev_sample
      parts.append(((x.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).to(torch.uint8).numpy())
  return np.concatenate(parts)


def main():
  options = arguments()
  import os
  import numpy as np
  import torch
  torch.set_num_threads(os.cpu_count())
  torch.manual_seed(options.seed)
  with np.load(options.data) as data:
    images, labels = data['images'], data['labels']
  classes = int(labels.max()) + 1
  model, scheduler = make_model(options, images, classes), make_scheduler()
  parameters = sum(p.numel() for p in model.parameters())
  model, steps = train(options, model, scheduler, images, labels, classes)
  took = time.monotonic() - STARTED
  print(f'{steps} steps of {options.batch} in {took:.0f} s, {parameters / 1e6:.2f} million parameters', flush=True)
  wanted = np.random.default_rng(options.seed).permutation(np.resize(np.random.default_rng(1).permutation(labels),
                                                                     options.samples))
  drawn = draw(options, model, scheduler, images.shape[1:], wanted, classes)
  np.savez(options.out, images=drawn, labels=wanted, steps=steps, seconds=took, parameters=parameters)


if __name__ == '__main__':
  main()
