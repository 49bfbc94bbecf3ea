"""Diffusion models in JAX: pure functions for research, one command to train, sample and look.

The public names below are imported when they are first used, so that the platform is settled before jax starts.
"""
import importlib

__version__ = '0.1.0'

PUBLIC = {
  'core.gaussian': 'Noise Pred Target CLEAN vp ve flow q_sample solve denoiser clip dynamic_threshold '
                   'predict_eps predict_x0 predict_v predict_flow predict_score predict_edm',
  'core.guidance': 'cfg apg rescale interval classifier shared_predictions separate_pair batched_pair',
  'objectives.denoising': 'loss',
  'samplers': 'Sampler Step sample sample_keys prior ddim_step ddpm_step ddim ddpm heun unipc dpmpp_2m dpmpp_3m',
  'training.loop': 'train_step',
  'training.open_model': 'load',
  'generation.sampling': 'draw',
}
MODULES = {'schedules': 'core.schedules', 'grids': 'core.grids', 'guidance': 'core.guidance', 'samplers': 'samplers'}
_PLACES = {name: module for module, names in PUBLIC.items() for name in names.split()}
__all__ = ['__version__', *_PLACES, *MODULES]


def __getattr__(name):
  if name in MODULES:
    return importlib.import_module(f'diffusion.{MODULES[name]}')
  if name not in _PLACES:
    raise AttributeError(f'module diffusion has no attribute {name!r}')
  return getattr(importlib.import_module(f'diffusion.{_PLACES[name]}'), name)


def __dir__():
  return __all__
