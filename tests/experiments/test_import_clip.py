"""A published CLIP as a work directory: the same vectors from the file and from the checkpoint."""
import jax
import numpy as np
import pytest

from diffusion import nets
from diffusion.errors import InputError
from diffusion.interop import clip
from diffusion.nets.clip import Clip
from diffusion.training.open_model import open_at
from experiments import import_clip
from tests.text.vocabularies import merges, write_folder

SIZES = dict(width=16, blocks=1, heads=2, text_width=16, text_blocks=1, text_heads=2, size=8, patch=4, length=7)


def test_it_reads_texts_and_images_as_the_file_does(tmp_path):
  write_folder(tmp_path / 'vocabulary', merges(40))
  rng, size = np.random.default_rng(0), 512 + 40 + 2
  net = nets.make(Clip(**SIZES, vocabulary=size, activation='quick_gelu', openai_pixels=True))
  x, cond = np.zeros((1, 8, 8, 3), np.float32), dict(tokens=np.zeros((1, 7), int), weights=np.ones((1, 7)))
  shapes = jax.eval_shape(lambda key: net.init(key, x.shape, cond), jax.random.key(0)) | dict(logit_scale=np.zeros(()))
  params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32) * .4, shapes)
  clip.save(tmp_path / 'model.safetensors', params, 'hf_clip')
  how = dict(heads=2, text_heads=2, activation='quick_gelu')
  import_clip.write(tmp_path / 'model.safetensors', tmp_path / 'vocabulary', tmp_path / 'run', **how)
  run, weights, step = open_at(str(tmp_path / 'run'))
  jax.tree.map(np.testing.assert_array_equal, weights.params, params)
  model, x = run.model(weights), rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
  wanted = np.asarray(net.apply(params, x, np.zeros(2)))
  np.testing.assert_allclose(model.embed_image(x), wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
  cond = run.task.ask(dict(prompt=['a', 'a hat']), np.arange(2), 0).cond
  assert step == 0 and np.isfinite(np.asarray(model.embed_text(cond))).all()
  with pytest.raises(InputError, match='holds a checkpoint already'):
    import_clip.write(tmp_path / 'model.safetensors', tmp_path / 'vocabulary', tmp_path / 'run', **how)
  write_folder(tmp_path / 'other', merges(30))
  with pytest.raises(InputError, match='544 tokens, and .* 554'):
    import_clip.write(tmp_path / 'model.safetensors', tmp_path / 'other', tmp_path / 'second', **how)
