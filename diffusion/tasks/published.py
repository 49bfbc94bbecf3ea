"""Latents of a published pipeline of diffusers: its autoencoder and text encoders are given weights."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.arrays import from_unit, to_unit
from diffusion.errors import InputError
from diffusion.interop import models, pipelines
from diffusion.system.files import write_atomic, write_npz
from diffusion.tasks import pages
from diffusion.tasks.base import Asked, need, Task
from diffusion.tasks.captioned_page import captioned_page
from diffusion.tasks.classes import ask_classes, TAKES
from diffusion.tasks.latent import coarse
from diffusion.tasks.published_texts import read_texts
from diffusion.tasks.text_to_image import prompts_of


def published(folder, *, data=None, facts=None):
  """x0: latents of images, scaled as the pipeline has them; the condition: an encoded text, a class, or none.

  The weights of the autoencoder and the text encoders stay in the folder; a checkpoint has their hash.

  Args:
    folder: of a pipeline with an autoencoder, as diffusers saves it.
  """
  name, parts, index = pipelines.read_index(folder)
  if not parts.latent:
    raise InputError(f"published: {name} has no autoencoder; use config.task='image'")
  if data is not None:
    facts = pipelines.facts(folder)
    need(data, 'images', *['captions'] * bool(parts.texts))
    size = list(data.arrays['images'].shape[1:3])
    if size != [facts['pixels']] * 2:
      raise InputError(f'published: expected images of {facts["pixels"]} x {facts["pixels"]}, config.data has {size}')
  if facts is None:  # only the arguments are checked
    return _task(None, dict(classes=[]), None, {}, ())
  latent = models.read(f'{folder}/{parts.latent}')
  told, encoders = read_texts(folder, parts.texts, index, facts['pixels']) if parts.texts else (None, ())
  frozen = dict(latent=latent.params, texts=encoders)
  if name != 'StableDiffusionInpaintPipeline':
    return _task(latent.module, facts, told, {}, frozen)
  nothing = np.zeros((1, facts['pixels'], facts['pixels'], 3), np.uint8)
  image = _kept(latent.module, frozen, nothing, np.ones((*nothing.shape[1:3], 1), bool))
  return _task(latent.module, facts, told, dict(image=image), frozen)._replace(painted=partial(_painted, latent.module))


def _task(module, facts, told, more, frozen):
  with_texts = told is not None
  empty = told.empty(frozen['texts']) if with_texts else None

  def encode(frozen, key, batch):
    x = module.apply(dict(params=frozen['latent']), to_unit(batch['images']), 'encode')
    if isinstance(x, tuple):
      mean, logvar = x
      x = mean if key is None else mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
    cond = batch.get('cond')
    if 'tokens' in batch:
      cond = told.context(frozen['texts'], batch['tokens'])
      cond |= {name: jnp.broadcast_to(a, (len(x), *a.shape[1:])) for name, a in more.items()}
    return module.scaled(x), cond

  def decode(frozen, x0, cond):
    return dict(images=from_unit(module.apply(dict(params=frozen['latent']), module.unscaled(x0), 'decode')))

  def ask(request, ids, seed):
    prompts = prompts_of(request.get('prompt', ''))
    rows = [told.encoded(frozen['texts'], prompt) if prompt else empty for prompt in prompts]
    rows = jax.tree.map(lambda *a: np.concatenate(a), *rows)
    rows |= {name: np.repeat(a, len(prompts), 0) for name, a in more.items()}
    index = np.asarray(ids) % len(prompts)  # sample k has the same prompt for any number
    return Asked({name: a[index] for name, a in rows.items()}, [prompts[i] for i in index], notes=told.notes(prompts))

  def null(cond):
    if not with_texts:
      return jax.tree.map(jnp.zeros_like, cond)
    return cond | {name: jnp.broadcast_to(a, cond[name].shape) for name, a in empty.items()}

  def show(outputs, labels, title):
    if with_texts:
      return captioned_page(outputs['images'], labels or [''] * len(outputs['images']), title)
    return pages.grid(outputs['images'], labels=labels, title=title)
  return Task(
    partial(_batch, with_texts), encode, null, decode, ask if with_texts else ask_classes(facts), show, _save, facts,
    frozen=frozen, prepare=(lambda frozen, data: told.prepared(data)) if with_texts else lambda frozen, data: data,
    tiles=lambda outputs: outputs['images'], takes=('prompt',) if with_texts else TAKES, gives='images',
    coarse=coarse, evaluators=('loss', 'samples'))


def _batch(with_texts, data, indices):
  names = ('images', 'tokens') if with_texts else ('images', 'cond') if 'cond' in data.arrays else ('images',)
  return {name: data.arrays[name][indices] for name in names}


def _save(folder, outputs, cond, labels):
  """samples.npz: images uint8 [N, H, W, C]; prompts.txt: a prompt or class on each line."""
  write_npz(folder / 'samples.npz', outputs)
  if labels:
    write_atomic(folder / 'prompts.txt', '\n'.join([*labels, '']).encode())


# ---- in-painting networks
def _painted(module, frozen, image, mask, cond):
  """The condition with what StableDiffusionInpaintPipeline has beside x: the mask, and the latents of what is kept."""
  kept = _kept(module, frozen, image, mask)
  return cond | dict(image=np.repeat(kept, len(cond['image']), 0))


def _kept(module, frozen, image, mask):
  """[1, h, w, 5]: the mask, 1 where it is painted, and the mean latents of the image, grey where it is painted.

  The mask of a latent is that of the first of its pixels, as torch resizes by 'nearest'.
  """
  encode = jax.jit(lambda params, x: module.apply(dict(params=params), x, 'encode')[0])
  mean = np.asarray(encode(frozen['latent'], jnp.where(mask, 0., to_unit(image))))
  small = mask[None, ::module.factor, ::module.factor].astype(np.float32)
  return np.concatenate([small, module.scaled(mean)], -1)
