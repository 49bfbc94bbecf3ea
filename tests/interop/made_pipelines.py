"""Tiny pipelines with random weights, made and written by diffusers itself; as a program, those of tests/fixtures."""
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from tests.interop.folders import from_torch, normal, randomised, to_torch, torch_of
from tests.text import vocabularies

SD = dict(beta_schedule='scaled_linear', beta_start=.00085, beta_end=.012)
LATER = dict(SD, set_alpha_to_one=False, steps_offset=1, clip_sample=False)
SMALL = dict(block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2)
UNET = dict(SMALL, sample_size=8, down_block_types=('DownBlock2D', 'AttnDownBlock2D'),
            up_block_types=('AttnUpBlock2D', 'UpBlock2D'), attention_head_dim=4)
CONTEXT = dict(SMALL, sample_size=4, down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
               up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'), cross_attention_dim=8, attention_head_dim=2)
XL = dict(CONTEXT, cross_attention_dim=16, addition_embed_type='text_time', addition_time_embed_dim=4,
          projection_class_embeddings_input_dim=24 + 6, use_linear_projection=True)
LATENT = dict(down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2,
              block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1)
DIT = dict(num_attention_heads=2, attention_head_dim=4, num_layers=1, sample_size=4, in_channels=4, out_channels=8,
           num_embeds_ada_norm=1000)
LENGTH = 9
STEPS, PROMPTS = 6, ('abc bé', 'cad')
PAINTS = 'StableDiffusionInpaintPipeline'
TEXTS = ('StableDiffusionPipeline', 'StableDiffusionXLPipeline', PAINTS)
NAMES = ('DDPMPipeline', 'LDMPipeline', 'DiTPipeline', *TEXTS)
PICTURE = np.random.default_rng(3).integers(0, 256, (8, 8, 3), np.uint8)
MASK = np.zeros((8, 8, 1), bool)
MASK[3:, 2:7] = True  # with an edge in the middle of a latent, where the way of resizing counts


def tokenizer(folder, pad='<|endoftext|>'):
  """A CLIPTokenizer with a tiny vocabulary."""
  import transformers
  vocabularies.write_folder(folder, vocabularies.merges(40))
  return transformers.CLIPTokenizer.from_pretrained(str(folder), model_max_length=LENGTH, pad_token=pad)


def tower(name='CLIPTextModel', **more):
  import transformers
  size = len(vocabularies.tokens(vocabularies.merges(40)))
  sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, projection_dim=6,
               max_position_embeddings=LENGTH, vocab_size=size, bos_token_id=size - 2, eos_token_id=size - 1)
  return randomised(getattr(transformers, name)(transformers.CLIPTextConfig(**sizes | more)), seed=5)


def make(name, folder):
  """A pipeline of that class, saved to the folder."""
  torch_of()
  import diffusers
  diffusers.utils.logging.set_verbosity_error()
  unet = lambda options: randomised(diffusers.UNet2DConditionModel(**options))
  kl = lambda: randomised(diffusers.AutoencoderKL(**LATENT, scaling_factor=.5), 3)
  ddim = diffusers.DDIMScheduler(**LATER)
  if name == 'DDPMPipeline':
    made = diffusers.DDPMPipeline(randomised(diffusers.UNet2DModel(**UNET)), diffusers.DDPMScheduler())
  elif name == 'LDMPipeline':
    vq = randomised(diffusers.VQModel(**LATENT, latent_channels=3, num_vq_embeddings=16, scaling_factor=1.), 3)
    made = diffusers.LDMPipeline(vq, randomised(diffusers.UNet2DModel(**UNET)), diffusers.DDIMScheduler(**LATER))
  elif name == 'DiTPipeline':
    made = diffusers.DiTPipeline(randomised(diffusers.DiTTransformer2DModel(**DIT)), kl(), ddim)
  elif name == 'StableDiffusionPipeline':
    made = diffusers.StableDiffusionPipeline(
      kl(), tower(), tokenizer(folder.parent / 'vocabulary'), unet(CONTEXT),
      diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1), None, None, requires_safety_checker=False)
  elif name == PAINTS:
    made = diffusers.StableDiffusionInpaintPipeline(
      kl(), tower(), tokenizer(folder.parent / 'vocabulary'), unet(CONTEXT | dict(in_channels=9)), ddim, None, None,
      requires_safety_checker=False)
  else:
    pad = tokenizer(folder.parent / 'vocabulary2', '!')
    made = diffusers.StableDiffusionXLPipeline(
      kl(), tower(), tower('CLIPTextModelWithProjection', hidden_act='gelu'), tokenizer(folder.parent / 'vocabulary'),
      pad, unet(XL), diffusers.EulerDiscreteScheduler(**SD, steps_offset=1, timestep_spacing='leading'))
  made.save_pretrained(folder)
  made.set_progress_bar_config(disable=True)
  return made


def drawn(name, theirs, x):
  """(x0, images in [0, 1]) that a pipeline draws from noise x [2, H, W, C], guidance 7.5, 6 steps; NumPy [2, H, W, C].

  DDPMPipeline: (the network's eps at the level 981, nothing).
  """
  import unittest.mock
  torch, noise, kept = torch_of(), to_torch(x), []
  with torch.no_grad():
    if name == 'DDPMPipeline':
      return from_torch(theirs.unet(noise, 981).sample), np.zeros(0, np.float32)
    if name in TEXTS:
      given = dict(latents=noise, guidance_scale=7.5, num_inference_steps=STEPS)
      given |= painting(theirs) if name == PAINTS else {}
      latents = theirs(list(PROMPTS), **given, output_type='latent').images
      return from_torch(latents), theirs(list(PROMPTS), **given, output_type='np').images
    part = theirs.vqvae if name == 'LDMPipeline' else theirs.vae
    decode = part.decode
    more = dict(batch_size=2) if name == 'LDMPipeline' else dict(class_labels=[3, 999], guidance_scale=7.5)
    with unittest.mock.patch(f'{type(theirs).__module__}.randn_tensor', lambda *a, **k: noise), \
        unittest.mock.patch.object(part, 'decode', lambda z: kept.append(z) or decode(z)):
      images = theirs(**more, num_inference_steps=STEPS, output_type='np').images
    return from_torch(kept[0] * part.config.scaling_factor), images


def painting(theirs):
  """What an in-painting pipeline takes besides; its latents of what is kept are made the mean, which it draws."""
  from PIL import Image
  module = sys.modules[type(theirs).__module__]
  module.retrieve_latents = lambda given, *unused, **more: given.latent_dist.mean
  mask = Image.fromarray(255 * MASK[..., 0].astype(np.uint8))
  return dict(image=Image.fromarray(PICTURE), mask_image=mask, height=8, width=8)


def noise_for(name):
  shape = dict(DDPMPipeline=(8, 8, 3), LDMPipeline=(8, 8, 3)).get(name, (4, 4, 4))
  return normal(7, 2, *shape)


def ship(folder, names=NAMES):
  """Writes each pipeline as a zip, with what it draws: what tests without the library read."""
  folder = pathlib.Path(folder)
  for name in names:
    with tempfile.TemporaryDirectory() as place:
      theirs = make(name, pathlib.Path(place) / 'folder')
      x0, images = drawn(name, theirs, noise_for(name))
      np.savez(pathlib.Path(place) / 'folder' / 'drawn.npz', x0=x0, images=images)
      shutil.make_archive(str(folder / name), 'zip', pathlib.Path(place) / 'folder')


if __name__ == '__main__':  # python -m tests.interop.made_pipelines FOLDER [NAME ..]
  ship(sys.argv[1], sys.argv[2:] or NAMES)
