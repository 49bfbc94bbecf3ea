"""A trained model for programs without this package: its weights as safetensors, and its whole sampler as StableHLO.

The folder of an export holds
  weights.safetensors   {'path/of/a/parameter': array}, with the step and the config as metadata
  sampler.stablehlo     (weights, ids, seed, and cond of a model with classes) -> uint8 pictures [B, H, W, C], for any
                        B, on CPU, GPU and TPU, by jax.export. Picture k depends on (seed, k) and its condition alone,
                        as in generate.make_stream. StableHLO promises that later versions read it for six months.
  config.json           config, shape, classes, step, versions, and the conditions that sample.py takes in turn
  sample.py             draws a page of pictures with jax, numpy, safetensors and pillow alone
"""
import json
import os

from etils import epath
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from diffusion.errors import InputError
from diffusion.generation import sample_report, sampling
from diffusion.setup import build
from diffusion.system import sharding
from diffusion.system.checksums import flat
from diffusion.training.open_model import with_guide_model

PLATFORMS = ('cpu', 'cuda', 'tpu')

SAMPLE = '''\
"""Draws pictures with the sampler beside this file: python sample.py [number] [seed]. Writes samples.png."""
import json, math, sys
from pathlib import Path
import jax.export
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

here = Path(__file__).parent
number, seed = [int(word) for word in sys.argv[1:] + ['16', '0'][len(sys.argv) - 1:]]
record = json.loads((here / 'config.json').read_text())
sampler = jax.export.deserialize((here / 'sampler.stablehlo').read_bytes())
ids = np.arange(number, dtype=np.int32)  # picture k is the same whatever the number
conds = [np.float32(rows)[ids % len(rows)] for rows in record['conditions']]
images = np.asarray(sampler.call(load_file(here / 'weights.safetensors'), ids, np.uint32(seed), *conds))
columns = math.ceil(number ** .5)
page = np.zeros((-(-number // columns) * columns, *images.shape[1:]), np.uint8)
page[:number] = images
rows = page.reshape(-1, columns, *images.shape[1:])
Image.fromarray(np.vstack([np.hstack(row) for row in rows]).squeeze()).save('samples.png')
'''


def write(run, config, params, step, folder, versions):
  """Exports weights, and the sampler that config.sampler, config.grid, config.guide .. describe.

  Layers take the form that suits this machine (see nets/layers.py), which is right on every other, if not the fastest.

  Args:
    run: the Experiment, on any mesh.
    config: its config.
    params: weights, on devices of this process.
    step: of the weights.
    folder: where; it must not exist, and is made whole or not at all.
    versions: of the software, for the record.
  Returns:
    The folder.
  Raises:
    InputError: a classifier, several processes, an export that is there already, a folder that cannot be written.
  """
  folder = epath.Path(folder)
  if run.denoise is None:
    raise InputError('a classifier draws nothing and cannot be exported; export the model that it guides')
  if jax.process_count() > 1:
    raise InputError(f'an export is made by one process, and here are {jax.process_count()}; start it on one host')
  if folder.exists():
    raise InputError(f'{folder} is there already; move it away to export again')
  # On a mesh of one device: a batch of unknown size cannot be divided over several.
  run = build.build(config, run.shape, run.classes, sharding.make_mesh(devices=jax.local_devices()[:1]))
  run, params = with_guide_model(run, params, config.sample.classes)
  weights = {path: np.asarray(leaf, order='C') for path, leaf in flat(jax.device_get(params)).items()}
  record = dict(step=step, config=json.loads(config.to_json()))
  facts = dict(shape=list(run.shape), classes=list(run.classes), versions=versions,
               conditions=conditions(run, config.sample))
  _write_folder(folder, {
    'weights.safetensors': safetensors.numpy.save(weights, {key: json.dumps(value) for key, value in record.items()}),
    'sampler.stablehlo': bytes(sampler(run, params).serialize()),
    'config.json': json.dumps(record | facts, indent=2).encode(),
    'sample.py': SAMPLE.encode()})
  return folder


def sampler(run, params):
  """The sampler of an Experiment on one device, as jax.export.Exported.

  It takes weights {path: array}, ids int32 [B], seed uint32 [] and, where there are classes, cond float32 [B, K]; it
  gives uint8 [B, H, W, C]. Of `params` only the shapes count.
  """
  tree, leaves = jax.tree.structure(params), flat(params)

  def draw(weights, ids, seed, cond=None):
    params = jax.tree.unflatten(tree, [weights[path] for path in leaves])
    return sampling.make_sample(run, seed)(params, ids, cond, None)[0]

  batch, = jax.export.symbolic_shape('batch')
  shape = jax.ShapeDtypeStruct
  weights = {path: shape(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
  cond = [shape((batch, len(run.classes)), jnp.float32)] if run.classes else []
  export = jax.export.export(jax.jit(draw), platforms=PLATFORMS)
  return export(weights, shape((batch,), jnp.int32), shape((), jnp.uint32), *cond)


def conditions(run, options):
  """The conditions that pictures take in turn, as config.sample says: [rows [R][K]], or [] without classes."""
  options = options.copy_and_resolve_references()
  options.num_samples = len([name for name in options.classes.split(',') if name.strip()] or run.classes)
  rows = sample_report.conditions(run, options)[0]
  return [] if rows is None else [rows.tolist()]


def _write_folder(folder, files):
  """All of {name: bytes}, or nothing: a temporary neighbour first, then one rename."""
  part = folder.parent / f'.{folder.name}.{os.getpid()}.part'
  try:
    try:
      part.mkdir(parents=True)
      for name, data in files.items():
        (part / name).write_bytes(data)
      part.rename(folder)
    except BaseException:
      if part.exists():
        part.rmtree()
      raise
  except OSError as error:
    raise InputError(f'cannot write {folder}: {error}; make room there, or mend the access') from error
