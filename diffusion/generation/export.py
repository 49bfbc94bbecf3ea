"""A trained model for programs without this package: its parameters as safetensors and its whole sampler as StableHLO.

The folder of an export holds
  weights.safetensors   {'path/of/a/parameter': array}; the metadata hold the step and the config
  sampler.stablehlo     (weights, ids, seed, and cond of a model with classes) -> uint8 images [B, H, W, C], for any
                        B, on CPU, GPU and TPU, by jax.export. Image k depends on (seed, k) and its condition alone,
                        as in sampling.make_draw. StableHLO guarantees that later versions read it for six months.
  config.json           config, shape, classes, step, versions, and the conditions that sample.py cycles through
  sample.py             draws a page of images with jax, numpy, safetensors and pillow alone
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
from diffusion.generation import sampling
from diffusion.setup import build
from diffusion.system import sharding
from diffusion.system.checksums import flat
from diffusion.training.open_model import with_guide_model

PLATFORMS = ('cpu', 'cuda', 'tpu')

SAMPLE = '''\
"""Draws images with the sampler beside this file: python sample.py [number] [seed]. Writes samples.png."""
import json, math, sys
from pathlib import Path
import jax.export
import numpy as np
from PIL import Image
from safetensors.numpy import load_file

folder = Path(__file__).parent
number, seed = [int(word) for word in sys.argv[1:] + ['16', '0'][len(sys.argv) - 1:]]
record = json.loads((folder / 'config.json').read_text())
sampler = jax.export.deserialize((folder / 'sampler.stablehlo').read_bytes())
ids = np.arange(number, dtype=np.int32)  # image k is the same for any number
conds = [np.float32(rows)[ids % len(rows)] for rows in record['conditions']]
images = np.asarray(sampler.call(load_file(folder / 'weights.safetensors'), ids, np.uint32(seed), *conds))
columns = math.ceil(number ** .5)
page = np.zeros((-(-number // columns) * columns, *images.shape[1:]), np.uint8)
page[:number] = images
rows = page.reshape(-1, columns, *images.shape[1:])
Image.fromarray(np.vstack([np.hstack(row) for row in rows]).squeeze()).save('samples.png')
'''


def write(run, params, step, folder, versions):
  """Exports the parameters and the sampler, with its grid and guidance.

  Layers are exported in the form that is fastest on this machine (see nets/layers.py); every platform runs it.

  Args:
    run: the Experiment, on any mesh.
    params: parameters, on devices of this process.
    step: of the parameters.
    folder: where; it must not exist, and is written whole or not at all.
    versions: of the software, for the record.
  Returns:
    The folder.
  Raises:
    InputError: a classifier, several processes, a folder that exists or cannot be written.
  """
  folder, config = epath.Path(folder), run.config
  if run.denoise is None:
    raise InputError('a classifier draws nothing and cannot be exported; export the model that it guides')
  if jax.process_count() > 1:
    raise InputError(f'--mode=export needs a single process, but there are {jax.process_count()}; run it on one host')
  if folder.exists():
    raise InputError(f'{folder} exists already; move it away to export again')
  # On a mesh of one device: a batch of unknown size cannot be divided over several.
  run = build.build(config, run.shape, run.classes, sharding.make_mesh(devices=jax.local_devices()[:1]))
  run, params = with_guide_model(run, params, config.sample.classes)
  weights = {path: np.asarray(leaf, order='C') for path, leaf in flat(jax.device_get(params)).items()}
  record = dict(step=step, config=json.loads(config.to_json()))
  facts = dict(shape=list(run.shape), classes=list(run.classes), versions=versions, conditions=conditions(run))
  _write_folder(folder, {
    'weights.safetensors': safetensors.numpy.save(weights, {key: json.dumps(value) for key, value in record.items()}),
    'sampler.stablehlo': bytes(sampler(run, params).serialize()),
    'config.json': json.dumps(record | facts, indent=2).encode(),
    'sample.py': SAMPLE.encode()})
  return folder


def sampler(run, params):
  """The sampler of an Experiment on one device, as jax.export.Exported.

  Its arguments are weights {path: array}, ids int32 [B], seed uint32 [] and, for a model with classes, cond float32
  [B, K]; its result is uint8 [B, H, W, C]. Only the shapes of `params` matter.
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


def conditions(run):
  """The conditions that images cycle through, as config.sample says: [rows [R][K]], or [] without classes."""
  rows, _ = sampling.conditions(run, len(sampling.split_names(run.config.sample.classes) or run.classes))
  return [] if rows is None else [rows.tolist()]


def _write_folder(folder, files):
  """Writes all of {name: bytes} or nothing: into a temporary folder beside it, which is then renamed."""
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
    raise InputError(f'cannot write {folder}: {error}; free some space or check permissions') from error
