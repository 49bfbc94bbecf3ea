"""The user's own texts: lines and pieces, and their tokens."""
import numpy as np
import pytest

from diffusion.data import texts
from diffusion.data.dataset import Dataset, size
from diffusion.errors import InputError
from diffusion.tasks.words import words

LINES = ['the cat sat,  on the "mat"!', "it's well-known", 'naïve café', 'the dog', 'a b c', 'x y', 'the cat', 'end.']


def test_lines_are_texts_and_equal_ones_stay_on_one_side(tmp_path):
  (tmp_path / 'a.txt').write_text('\n'.join([*LINES, '', *LINES[:4]]), encoding='utf-8')
  source = texts.text(str(tmp_path / 'a.txt'), heldout=3)
  train, held = (set(side.arrays['captions'].tolist()) for side in source[:2])
  assert train | held == set(LINES) and not train & held and size(source.train) + size(source.heldout) == 12


def test_pieces_cover_the_text_and_the_last_are_held_out(tmp_path):
  whole = ''.join(chr(97 + i * i % 26) for i in range(1005))
  (tmp_path / 'a.txt').write_text(whole)
  source = texts.text(str(tmp_path / 'a.txt'), length=10, heldout=.2)
  assert ''.join([*source.train.arrays['captions'], *source.heldout.arrays['captions']]) == whole[:1000]
  assert size(source.heldout) == 20


@pytest.mark.parametrize('unit', ['word', 'character'])
def test_tokens_spell_every_training_text_exactly(unit):
  data = Dataset(dict(captions=np.array([*LINES, 'two\nlines\there', 'Ω🙂'], np.dtypes.StringDType())))
  task = words(unit, data=data)
  tokens = task.prepare((), data).arrays['tokens']
  assert tokens.shape == (10, task.facts['length'], 1) and tokens.max() < task.categories
  assert task.given(dict(texts=tokens)) == data.arrays['captions'].tolist()
  other = Dataset(dict(captions=np.array(['the zebra sat' if unit == 'word' else 'q'], np.dtypes.StringDType())))
  assert '\ufffd' in task.given(dict(texts=task.prepare((), other).arrays['tokens']))[0]


def test_blanks_are_free_and_the_rest_is_known():
  data = Dataset(dict(captions=np.array(LINES, np.dtypes.StringDType())))
  task = words(data=data)
  known = task.ask(dict(text='the _ sat'), np.arange(3), 0).cond['known']
  whole = Dataset(dict(captions=np.array(['the cat sat'], np.dtypes.StringDType())))
  again = task.prepare((), whole).arrays['tokens']
  free = known < 0
  assert free[:, 1].all() and free.sum() == 3
  np.testing.assert_array_equal(known[~free], np.repeat(again, 3, 0)[~free])
  null = task.null(dict(cond=np.ones((3, 2)), known=known))
  np.testing.assert_array_equal(null['known'], known)
  assert not np.any(null['cond'])
  with pytest.raises(InputError, match="'sat' does not occur at the beginning of the training texts"):
    task.ask(dict(text='sat the _'), np.arange(1), 0)
  single = words(data=Dataset(dict(captions=np.array(['the old cat'], np.dtypes.StringDType()))))
  with pytest.raises(InputError, match="' ' does not occur in the training texts"):
    single.ask(dict(text='the  _'), np.arange(1), 0)
  with pytest.raises(InputError, match="'zebra' does not occur in the training texts"):
    task.ask(dict(text='the zebra _'), np.arange(1), 0)
  with pytest.raises(InputError, match='at most'):
    task.ask(dict(text='_ ' * 99), np.arange(1), 0)


@pytest.mark.parametrize('content, options, message', [
  (None, {}, 'cannot be read'), (b'', {}, 'no captions found'),
  (b'abc', dict(length=10), 'no pieces of 10 characters found'),
  (b'abc' * 9, dict(length=3, heldout=1.), 'heldout=1.0 of 9 pieces'),
  (b'abc' * 9, dict(length=3, heldout=9), 'leaves none of 9'), (b'\xff\xfe\xfa', {}, 'UTF-8'),
  (b'abc', dict(length=-1), 'length=-1')])
def test_what_is_no_text_is_refused(tmp_path, content, options, message):
  path = tmp_path / 'a.txt'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=message):
    texts.text(str(path), **options)
