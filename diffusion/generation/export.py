"""A trained model for programs without this package: its parameters as safetensors and its whole sampler as StableHLO.

The folder of an export holds
  weights.safetensors   {'path/of/a/parameter': array}; the metadata hold the step and the config
  frozen.safetensors    what else the sampler takes: given weights, such as an autoencoder's or those of a second
                        model, and what the objective remembers; only if there is any
  requests.safetensors  conditions as the model takes them, {'path': [R, ...]}, that sample.py cycles through; only
                        if the model takes conditions
  sampler.stablehlo     (weights, frozen, ids [B], seed [], cond), dicts as in the files, -> {output: array [B, ...]}
                        and 'finite' [B], for any B, on CPU, GPU and TPU, by jax.export. Sample k depends on (seed, k)
                        and its condition alone, as in sampling.make_draw. Later versions of StableHLO read it for at
                        least six months.
  config.json           config, facts of the task, step, versions
  sample.py             draws samples, and a page of images, with jax, numpy, safetensors and pillow alone
"""
import errno
import json
import os

from etils import epath
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from diffusion.errors import InputError
from diffusion.generation import requests, sampling
from diffusion.setup import build
from diffusion.setup.build import require
from diffusion.system import sharding
from diffusion.system.checksums import flat
from diffusion.system.files import writable
from diffusion.tasks.classes import drawn_classes, split_names
from diffusion.training.open_model import open_at, with_guide_model

PLATFORMS = ('cpu', 'cuda', 'tpu')

SAMPLE = '''\
"""Draws with the sampler beside this file: python sample.py [number] [seed]. Writes samples.npz; images also as PNG."""
import math, pathlib, sys
import jax.export, numpy as np
from PIL import Image
from safetensors.numpy import load_file
folder = pathlib.Path(__file__).parent
number, seed = [int(word) for word in sys.argv[1:] + ['16', '0'][len(sys.argv) - 1:]]
read = lambda name: load_file(path) if (path := folder / f'{name}.safetensors').exists() else {}
sampler = jax.export.deserialize((folder / 'sampler.stablehlo').read_bytes())
ids = np.arange(number, dtype=np.int32)  # sample k is the same for any number
cond = {path: rows[ids % len(rows)] for path, rows in read('requests').items()}
outputs = sampler.call(read('weights'), read('frozen'), ids, np.uint32(seed), cond)
lost = number - int(np.sum(outputs.pop('finite')))
np.savez_compressed('samples.npz', **outputs)
if 'images' in outputs:
  images, columns = np.asarray(outputs['images']), math.ceil(number ** .5)
  page = np.concatenate([images, np.zeros_like(images, shape=(-number % columns, *images.shape[1:]))])
  rows = page.reshape(-1, columns, *images.shape[1:])
  Image.fromarray(np.vstack([np.hstack(row) for row in rows]).squeeze()).save('samples.png')
lost and sys.exit(f'error: {lost} of {number} samples are not finite: see guide and clip_x0 in config.json')
'''


def write(run, weights, step, folder, versions):
  """Exports the weights and the sampler, with its grid and guidance.

  Layers are exported in the form that is fastest on this machine (see nets/layers.py); every platform runs it.

  Args:
    run: the Experiment, on any mesh.
    weights: its Weights, on devices of this process.
    step: of the weights.
    folder: where; it must not exist, and is written whole or not at all.
    versions: of the software, for the record.
  Returns:
    The folder.
  Raises:
    InputError: a model that draws nothing, several processes, a folder that exists or cannot be written.
  """
  folder, config = epath.Path(folder), run.config
  require(run, 'draws', '; export the model that it guides')
  if jax.process_count() > 1:
    raise InputError(f'--mode=export needs a single process, but there are {jax.process_count()}; run it on one host')
  if folder.exists():
    raise InputError(f'{folder} exists already; move it away to export again')
  writable(folder.parent)  # before the work
  # On a mesh of one device: a batch of unknown size cannot be divided over several.
  run = build.build(config, run.task, run.example, sharding.make_mesh(devices=jax.local_devices()[:1]),
                    open_model=open_at)
  run, weights = with_guide_model(run, weights, config.sample.classes)
  own, given = flat_arrays(weights.params), flat_arrays(rest_of(weights))
  record = dict(step=step, config=json.loads(config.to_json()))
  facts = dict(facts=run.task.facts, versions=versions)
  save, metadata = safetensors.numpy.save, {key: json.dumps(value) for key, value in record.items()}
  asked = conditions(run)
  files = {'weights.safetensors': save(own, metadata)}
  files |= {'frozen.safetensors': save(given)} if given else {}
  files |= {'requests.safetensors': save(asked)} if asked else {}
  return _write_folder(folder, files | {
    'sampler.stablehlo': bytes(sampler(run, weights).serialize()),
    'config.json': json.dumps(record | facts, indent=2).encode(),
    'sample.py': SAMPLE.encode()})


def rest_of(weights):
  """What a sampler takes beside the parameters."""
  return dict(memory=weights.memory, frozen=weights.frozen)


def flat_arrays(tree):
  """{path: NumPy array} of a tree; an array alone has the path 'value'."""
  return {path or 'value': np.asarray(leaf, order='C') for path, leaf in flat(jax.device_get(tree)).items()}


def sampler(run, weights):
  """The sampler of an Experiment on one device, as jax.export.Exported: see the module docstring.

  Only the shapes of `weights` matter.
  """
  shaped = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights)
  asked = run.task.ask({}, np.arange(1), 0)

  def draw(own, frozen, ids, seed, cond):
    weights = build.Weights(unflat(shaped.params, own), **unflat(rest_of(shaped), frozen))
    sample = sampling.make_sample(run, seed, shape=asked.shape)
    outputs, _, finite = sample(weights, ids, unflat(asked.cond, cond), None)
    return outputs | dict(finite=finite)

  batch, = jax.export.symbolic_shape('batch')
  shape = jax.ShapeDtypeStruct
  own, frozen = ({path or 'value': shape(leaf.shape, leaf.dtype) for path, leaf in flat(tree).items()}
                 for tree in (shaped.params, rest_of(shaped)))
  cond = {path or 'value': shape((batch, *leaf.shape[1:]), leaf.dtype) for path, leaf in flat(asked.cond).items()}
  export = jax.export.export(jax.jit(draw), platforms=PLATFORMS)
  return export(own, frozen, shape((batch,), jnp.int32), shape((), jnp.uint32), cond)


def unflat(like, arrays):
  """The tree `like` of the arrays of flat_arrays."""
  return jax.tree.unflatten(jax.tree.structure(like), [arrays[path or 'value'] for path in flat(like)])


def conditions(run):
  """The conditions that samples cycle through, as config.sample says, {path: [R, ...]}; {} if there are none."""
  request = requests.of_config(run)
  number = len(split_names(str(request.get('classes', ''))) or drawn_classes(run.task.facts))
  number = number or (run.config.sample.num_samples if request else 1)
  arrays = flat_arrays(requests.ask(run, request, np.arange(number), run.config.sample.seed).cond)
  return {name: array[:_period(arrays, number)] for name, array in arrays.items()}


def _period(arrays, number):
  """The number of rows after which all arrays [number, ..] begin anew."""
  return next(p for p in range(1, number + 1)
              if all(np.array_equal(array[p:], array[:number - p]) for array in arrays.values()))


def _place(part, folder):
  """Renames `part` to `folder`, or to the first free of folder-2, folder-3 .. if another process was faster."""
  number = 1
  while True:
    place = folder if number == 1 else folder.parent / f'{folder.name}-{number}'
    try:
      os.rename(part, place)  # fails where there is a folder with files
      return place
    except OSError as error:
      if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
        raise
      number += 1


def _write_folder(folder, files):
  """Writes all of {name: bytes} or nothing: into a temporary folder beside it, which is then renamed. The folder."""
  part = folder.parent / f'.{folder.name}.{os.getpid()}.part'
  try:
    try:
      part.mkdir(parents=True)
      for name, data in files.items():
        (part / name).write_bytes(data)
      return _place(part, folder)
    except BaseException:
      if part.exists():
        part.rmtree()
      raise
  except OSError as error:
    raise InputError(f'cannot write {folder}: {error}; free some space or check permissions') from error
