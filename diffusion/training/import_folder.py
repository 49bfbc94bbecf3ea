"""A work directory made of a folder of diffusers, and a folder made of a work directory."""
import json
import os

import jax
import jax.numpy as jnp
import numpy as np

from diffusion.errors import InputError
from diffusion.interop import folder as folders, models, pipelines
from diffusion.setup import build, specs
from diffusion.setup.choices import make
from diffusion.setup.config import put
from diffusion.setup.validate import check
from diffusion.system import multihost, sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.files import user_path, write_atomic
from diffusion.training.open_model import open_at
from diffusion.training.record import to_meta
from diffusion.training.state import lean, TrainState

KEPT = 'diffusers'  # folder of a work directory with the files of the pipeline that are no weights


def import_folder(config, source, workdir, report, variant=''):
  """Writes a checkpoint of step 0 with the weights and the settings of a pipeline.

  Args:
    config: a config at its defaults, or with settings that the user has changed; the pipeline's replace them.
    source: folder of the pipeline, as diffusers saves it.
    workdir: epath.Path, without checkpoints.
    report: (label, text) -> None.
    variant: of the weights: '', 'fp16' or 'non_ema'.
  Returns:
    The Experiment.
  Raises:
    InputError: a work directory in use; what of the folder cannot be read or has no meaning here.
  """
  if multihost.is_main() and jax.process_count() > 1:
    raise InputError('--mode=import runs on one process; sample and train on as many as you like')
  checkpoints = open_checkpoints(workdir / 'checkpoints', config.keep_last)
  if checkpoints.latest_meta() is not None:
    raise InputError(f'{workdir} holds a checkpoint already; name another --workdir')
  source = source if '://' in source else os.path.abspath(user_path(source))  # it is opened from anywhere later
  for key, value in pipelines.settings(source).items():
    put(config, key, value)
  run = _run_of(config, source, report)
  shapes, memory = run.initial
  model = pipelines.read_net(source, variant, {name: a.shape for name, a in shapes.items()})
  report('read', f'{len(model.params)} tensors, {sum(a.size for a in model.params.values()):,} parameters')
  params, base = run.split(model.params)
  if jax.tree.leaves(memory):
    memory = jax.jit(lambda key: run.objective.init(key)[1])(jax.random.key(0))  # without random parameters
  state = lean(TrainState(jnp.zeros((), jnp.int32), params, (), (), memory, (), base))  # the network is held once
  _copy_files(user_path(source), workdir / KEPT)  # first: with a checkpoint the work directory counts as complete
  checkpoints.save(0, state, to_meta(config, run) | dict(source=source))
  checkpoints.close()
  report('checkpoint', workdir / 'checkpoints' / '0')
  return run


def _run_of(config, source, report):
  """The Experiment of a pipeline."""
  parts = check(config)
  facts = pipelines.facts(source)
  task = make('task', config.task, facts=facts, open_model=open_at)
  asked = task.ask({}, np.arange(1), 0)
  cond = jax.tree.map(lambda a: np.zeros_like(np.asarray(a)), asked.cond)
  example = np.zeros((1, *facts['shape']), np.float32), cond
  for key in ('net', 'task', 'schedule', 'predict', 'sampler', 'grid', 'guide'):
    report(key, config[key])
  return build.build(config, task, example, sharding.make_mesh(devices=jax.devices()[:1]), parts, open_at)


def _copy_files(source, target):
  """Copies the files of a pipeline that are no weights, nor their index."""
  for path in (*source.iterdir(), *(path for part in source.iterdir() if part.is_dir() for path in part.iterdir())):
    kept = path.suffix in ('.json', '.txt') and '.safetensors.' not in path.name and '.bin.' not in path.name
    if path.is_file() and kept:
      copy = target / path.relative_to(source)
      copy.parent.mkdir(parents=True, exist_ok=True)
      write_atomic(copy, path.read_bytes())


# ---- and back
def export_folder(run, params, workdir, folder):
  """Writes a folder that diffusers reads: the pipeline that was imported, with these parameters, or a new one.

  A new one is a DDPMPipeline, of a network with the names of diffusers (net 'unet2d') on images.

  Raises:
    InputError: another network or task; a folder that exists; a pipeline whose own folder is gone.
  """
  folder, kept = user_path(folder), workdir / KEPT
  if folder.exists():
    raise InputError(f'{folder} exists; remove it, or export another step')
  arrays = {name: np.asarray(jax.device_get(a)) for name, a in params.items() if hasattr(a, 'shape')}
  if not (kept / 'model_index.json').exists():
    return _new_folder(run, arrays, folder)
  name, parts, index = pipelines.read_index(kept)
  _copy_files(kept, folder)
  config = folders.read_json(kept / parts.net / 'config.json')
  kind, _, module = models.describe(config, str(kept))
  models.write(folder / parts.net, models.Model(kind, config, module, arrays))
  frozen = run.task.frozen if parts.latent else dict(latent=None, texts=())
  for part, weights in zip((parts.latent, *parts.texts), (frozen['latent'], *frozen['texts'])):
    if not part:  # pixels
      continue
    config = folders.read_json(kept / part / 'config.json')
    kind, _, module = models.describe(config, str(kept))
    models.write(folder / part, models.Model(kind, config, module, weights))
  return folder


def _new_folder(run, arrays, folder):
  config = run.config
  if not config.net.startswith('unet2d(') or len(run.example[0].shape) != 4 or run.task.frozen:
    raise InputError(f"config.net={config.net!r}: diffusers has no such network; --format=diffusers needs "
                     "net='unet2d(..)' on images, or a work directory made by --mode=import")
  module, shape = make('net', config.net), run.example[0].shape[1:]
  classes = None if run.example[1] is None else run.example[1].shape[-1]
  described = models.config_of('unet2d', module) | dict(
    sample_size=module.sample_size or shape[0], in_channels=shape[-1], num_class_embeds=classes,
    out_channels=module.out_channels or shape[-1] * (1 + (config.variance != 'fixed')))
  kind, _, module = models.describe(described, 'config.net')
  models.write(folder / 'unet', models.Model(kind, described, module, arrays))
  index = dict(_class_name='DDPMPipeline', _diffusers_version='0.35.0', scheduler=['diffusers', 'DDPMScheduler'],
               unet=['diffusers', 'UNet2DModel'])
  (folder / 'scheduler').mkdir(parents=True, exist_ok=True)
  for path, found in ((folder / 'model_index.json', index),
                      (folder / 'scheduler' / 'scheduler_config.json', scheduler_of(config))):
    write_atomic(path, (json.dumps(found, indent=2) + '\n').encode())
  return folder


def scheduler_of(config):
  """scheduler_config.json of a DDPMScheduler with the schedule and target of a config."""
  table = make('schedule', config.schedule)
  target = dict(eps='epsilon', x0='sample', v='v_prediction').get(specs.parse(config.predict)[0])
  if callable(table) or target is None or not np.allclose(table.alpha ** 2 + table.sigma ** 2, 1):
    raise InputError(f'config.schedule={config.schedule!r}, config.predict={config.predict!r}: diffusers needs a '
                     'variance-preserving table, and the target eps, x0 or v')
  alpha2 = table.alpha ** 2
  betas = 1 - alpha2 / np.append(1., alpha2[:-1])
  return dict(_class_name='DDPMScheduler', _diffusers_version='0.35.0', num_train_timesteps=len(betas),
              trained_betas=betas.tolist(), prediction_type=target, clip_sample=bool(config.clip_x0),
              variance_type='fixed_small' if config.variance == 'fixed' else 'learned_range')
