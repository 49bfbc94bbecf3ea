r"""A work directory from a published CLIP, so that it can guide, judge, retrieve and classify like one trained here.

  python -m experiments.import_clip --model=/models/clip-vit-base-patch32 --vocabulary=bpe_simple_vocab_16e6.txt.gz \
    --workdir=runs/openai_clip

The model is a folder or file as diffusion/interop/clip.py reads it, the vocabulary CLIP's own (text/bpe.py). SigLIP has
a vocabulary of another kind (SentencePiece), which is not read here.
"""
import sys

from absl import app, flags
import jax
import numpy as np

from diffusion.data.arrays import image_dataset
from diffusion.errors import InputError
from diffusion.interop import clip
from diffusion.setup import build
from diffusion.setup.choices import make
from diffusion.setup.config import default
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.files import user_path
from diffusion.training.open_model import encoded_example
from diffusion.training.record import to_meta
from diffusion.training.state import make_state


def write(model, vocabulary, workdir, **options):
  """Writes the checkpoint of step 0 of a work directory.

  Args:
    model, options: as for interop.clip.load.
    vocabulary: path of CLIP's vocabulary.
  Raises:
    InputError: what load and the vocabulary raise; a vocabulary of another size; a directory that holds a checkpoint.
  """
  checkpoints = open_checkpoints(user_path(workdir) / 'checkpoints')
  if checkpoints.latest_meta() is not None:
    raise InputError(f'--workdir={workdir} holds a checkpoint already; name another one')
  opened = clip.load(model, **options)
  config = default()
  config.net, config.objective = opened.net, 'contrastive'
  config.task = f"pairs(tokens=clip, vocabulary='{vocabulary}', length={opened.facts['length']})"
  side = opened.facts['pixels']
  data = image_dataset(np.zeros((1, side, side, 3), np.uint8), captions=[''])
  task = make('task', config.task, data=data)
  if task.facts['tokens']['size'] != opened.facts['vocabulary']:
    raise InputError(f'--vocabulary={vocabulary} has {task.facts["tokens"]["size"]:,} tokens, and {model} '
                     f'{opened.facts["vocabulary"]:,}: it is the vocabulary of another model')
  example = encoded_example(task, task.prepare(task.frozen, data))
  run = build.build(config, task, example, sharding.make_mesh(devices=jax.devices()[:1]))
  state = make_state(run, jax.random.key(0))
  params = jax.tree.map(lambda a, b: sharding.put(b, a.sharding), state.params, opened.params)
  checkpoints.save(0, state._replace(params=params, ema=params), to_meta(config, run))
  checkpoints.close()


def main(argv):
  given = flags.FLAGS
  write(given.model, given.vocabulary, given.workdir, activation=given.activation)
  print(f'wrote       {given.workdir}')


if __name__ == '__main__':
  flags.DEFINE_string('model', None, 'Folder or .safetensors of the model.', required=True)
  flags.DEFINE_string('vocabulary', None, "CLIP's vocabulary.", required=True)
  flags.DEFINE_string('workdir', None, 'Where it is written.', required=True)
  flags.DEFINE_string('activation', '', 'gelu or quick_gelu, where no JSON says it.')
  try:
    app.run(main)
  except InputError as error:
    sys.exit(f'error: {error}')
