"""Whole pipelines of diffusers, by their model_index.json: what they mean as settings of ours, and their parts."""
from typing import NamedTuple

from diffusion.errors import InputError, unknown
from diffusion.interop import folder as folders, models, schedulers
from diffusion.system.files import user_path


class Parts(NamedTuple):
  """Folders of a pipeline; '' where it has none."""
  net: str               # of what is trained
  latent: str = ''       # of the autoencoder
  texts: tuple = ()      # of text encoders; their tokenizers have the same endings


LARGE = {'batch': 4, 'sample.batch': 4, 'sample.num_samples': 4}  # settings of pipelines of large pictures
PIXELS, LATENT = Parts('unet'), Parts('unet', 'vqvae')
TEXT = Parts('unet', 'vae', ('text_encoder',))
PIPELINES = dict(
  DDPMPipeline=PIXELS, DDIMPipeline=PIXELS, PNDMPipeline=PIXELS, LDMPipeline=LATENT,
  DiTPipeline=Parts('transformer', 'vae'), StableDiffusionPipeline=TEXT, StableDiffusionImg2ImgPipeline=TEXT,
  StableDiffusionInpaintPipeline=TEXT,
  StableDiffusionXLPipeline=Parts('unet', 'vae', ('text_encoder', 'text_encoder_2')))


def read_index(folder):
  """(name of the pipeline, its Parts, model_index.json) of a folder.

  Raises:
    InputError: no such file, a pipeline that is not offered here, a part that is missing.
  """
  folder = user_path(folder)
  path = folder / 'model_index.json'
  if not path.exists():
    hint = (' (it is one network: give the folder of its pipeline)' if (folder / 'config.json').exists() else '')
    raise InputError(f'{folder} has no model_index.json; expected a pipeline as diffusers saves it{hint}')
  index = folders.read_json(path)
  name = index.get('_class_name')
  if str(name) not in PIPELINES:
    raise InputError(f'{path}: _class_name={name!r}: {unknown(str(name), PIPELINES)}')
  schedulers.check_version(index)
  parts = PIPELINES[name]
  for part in (parts.net, parts.latent, *parts.texts, 'scheduler'):
    if part and not (folder / part).is_dir():
      raise InputError(f'{folder} lacks the folder {part}, which {name} needs: get it again')
  return name, parts, index


def settings(folder, steps=50):
  """The settings of our config that mean the same as a pipeline: {key: value}; weights are not read."""
  name, parts, index = read_index(folder)
  config = folders.read_json(f'{folder}/{parts.net}/config.json')
  kind, _, module = models.describe(config, f'{folder}/{parts.net}')
  process = schedulers.read(folders.read_json(f'{folder}/scheduler/scheduler_config.json'), steps)
  spec = models.spec_of(models.Model(kind, config, module, {}))
  doubled = bool(module.out_channels) and module.out_channels == 2 * _channels(module, parts)
  if process.variance == 'learned' and not doubled:
    raise InputError(f'{folder}/scheduler: a learned variance needs {parts.net}/config.json out_channels='
                     f'{2 * _channels(module, parts)}, found {module.out_channels}')
  conditional = bool(parts.texts) or name == 'DiTPipeline'
  learned = dict(variance='learned', loss_weight='one') if doubled else dict(variance='fixed', loss_weight='one')
  return dict(
    net=spec, task=f'published({str(user_path(folder))!r})' if parts.latent else 'image', schedule=process.schedule,
    predict=process.predict, sampler=process.sampler, grid=process.grid, clip_x0=process.clip_x0,
    guide={'DiTPipeline': 'cfg(4)', 'StableDiffusionXLPipeline': 'cfg(5)'}.get(name, 'cfg(7.5)') if conditional else '',
    condition_dropout=.1, timesteps='uniform', ema_decay=.9999, learning_rate=1e-5,
    data=f'folder(IMAGES, size={_size(folder, module, parts)})') | learned | (
      LARGE if _size(folder, module, parts) >= 256 else {})


def _channels(module, parts):
  """Of what is noised."""
  return (module.in_channels or (4 if parts.latent else 3)) if module.in_channels != 9 else 4


def _size(folder, module, parts):
  """Pixels in one direction."""
  if not isinstance(module.sample_size, int) or module.sample_size < 1:
    raise InputError(f'{folder}/{parts.net}/config.json: sample_size={module.sample_size!r}: expected a whole number '
                     'of at least 1, the size of what is noised')
  return module.sample_size * (autoencoder(folder, parts).factor if parts.latent else 1)


def autoencoder(folder, parts):
  """The module of the autoencoder."""
  return models.describe(folders.read_json(f'{folder}/{parts.latent}/config.json'), f'{folder}/{parts.latent}')[2]


def facts(folder):
  """What the weights mean, for the record of a checkpoint."""
  name, parts, index = read_index(folder)
  module = models.describe(folders.read_json(f'{folder}/{parts.net}/config.json'), f'{folder}/{parts.net}')[2]
  found = dict(shape=[module.sample_size] * 2 + [_channels(module, parts)], classes=[])
  if not parts.latent:
    if module.num_class_embeds:
      found['classes'] = [f'class {i}' for i in range(module.num_class_embeds)]
    return found
  if name == 'DiTPipeline':
    labels = index.get('id2label') or {}
    if not isinstance(labels, dict):
      raise InputError(f'{folder}/model_index.json: id2label is no object; expected {{"0": "name of class 0", ..}}')
    found['classes'] = _class_names(labels, module.num_embeds_ada_norm or 1000)
  return found | dict(pipeline=name, pixels=_size(folder, module, parts))


def _class_names(labels, number):
  """One name for each class, the first of its label; of two with the same name both have their number."""
  first = [str(labels.get(str(i), f'class {i}')).split(',')[0].strip() for i in range(number)]
  return [name if first.count(name) == 1 else f'{name} {i}' for i, name in enumerate(first)]


def read_net(folder, variant='', expected=None):
  """The Model of what is trained; expected: as of models.read."""
  _, parts, _ = read_index(folder)
  return models.read(f'{folder}/{parts.net}', variant, expected=expected)
