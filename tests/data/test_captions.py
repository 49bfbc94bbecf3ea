"""Several captions of an image: from metadata.jsonl and from .npz."""
import json

import numpy as np
from PIL import Image
import pytest

from diffusion.data.dataset import captions, describe, first_captions
from diffusion.errors import InputError
from diffusion.setup.choices import make


def test_a_folder_may_give_an_image_several_captions(tmp_path):
  texts = ['a cat', ['a dog', 'a brown dog', 'a pet'], [], ['a fish']]
  for i, text in enumerate(texts):
    Image.new('RGB', (4, 4), (60 * i, 9, 9)).save(tmp_path / f'{i}.png')
  (tmp_path / 'metadata.jsonl').write_text('\n'.join(
    json.dumps(dict(file_name=f'{i}.png', text=text)) for i, text in enumerate(texts)))
  source = make('data', f'folder({tmp_path}, heldout=0)')
  assert source.train.arrays['captions'].tolist() == [
    ['a cat', '', ''], ['a dog', 'a brown dog', 'a pet'], ['', '', ''], ['a fish', '', '']]
  assert first_captions(source.train).tolist() == ['a cat', 'a dog', '', 'a fish']
  assert captions(source.train, np.array([1, 3])) == ['a dog', 'a fish']
  assert "captions  'a dog'" in describe(source)
  assert any('1 of 4 images have no caption' in note for note in source.notes)
  words = make('task', 'words', data=source.train)  # which models one text each
  assert words.prepare((), source.train).arrays['tokens'].shape[0] == 4


def test_an_archive_may_have_several_captions_in_a_row(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
  np.savez(tmp_path / 'a.npz', images=images, captions=np.array([['a', 'b'], ['c', 'd']]))
  assert make('data', f'npz({tmp_path}/a.npz, heldout=0)').train.arrays['captions'].tolist() == [['a', 'b'], ['c', 'd']]
  np.savez(tmp_path / 'a.npz', images=images, captions=np.array([[['a']], [['c']]]))
  with pytest.raises(InputError, match=r'captions must be an array of text \[N\], or \[N, several\]'):
    make('data', f'npz({tmp_path}/a.npz, heldout=0)')
