"""Weights of parts of a prompt: the syntax, and that the ids are those of the plain text."""
import random

import numpy as np
import pytest

from diffusion.data import sprites
from diffusion.errors import InputError
from diffusion.text import encode_weighted, TOKENIZERS, weighted
from tests.text import vocabularies

CAPTIONS = sprites.generate(100, 0, 0)[0].arrays['captions'][:].tolist()


@pytest.fixture(scope='module', params=['words', 'bytes', 'clip'])
def tokenizer(request, tmp_path_factory):
  if request.param == 'clip':
    folder = tmp_path_factory.mktemp('clip') / 'tokenizer'
    return TOKENIZERS['clip'](vocabularies.write_folder(folder, vocabularies.merges(300)))
  return TOKENIZERS['words'](CAPTIONS) if request.param == 'words' else TOKENIZERS['bytes']()


@pytest.mark.parametrize('text, parts', [
  ('a (red:1.5) dragon with (two eyes:0.5)', [('a ', 1), ('red', 1.5), (' dragon with ', 1), ('two eyes', .5)]),
  ('plain', [('plain', 1)]), ('', []), ('(a:2)(b:2)', [('a', 2), ('b', 2)]), ('(a: .5 )', [('a', .5)]),
  ('a (small) fox', [('a (small) fox', 1)]), (r'\(a:2\) \\ \x', [(r'(a:2) \ \x', 1)]), ('()', [('()', 1)]),
  (r'(at 3:2 \(x\):2)', [('at 3:2 (x)', 2)]), ('(a:0)b', [('a', 0), ('b', 1)]), ('x: y', [('x: y', 1)])])
def test_the_syntax(text, parts):
  assert weighted(text) == parts


@pytest.mark.parametrize('text, problem', [
  ('a ((b:2):3)', 'inside'), ('((b))', 'inside'), ('(a:2', 'not closed'), ('a:2)', 'not open'), ('a :)', 'not open'),
  ('(a:b)', "'b' is no number"), ('(a:)', "'' is no number"), ('(a:-1)', 'at least 0'), ('(a:nan)', 'at least 0'),
  ('(a:inf)', 'at least 0'), ('( :2)', 'no text'), (None, 'expected a text')])
def test_what_is_not_of_the_syntax_is_one_clear_line(text, problem):
  with pytest.raises(InputError, match='first line') as caught:
    weighted(text, 'first line')
  assert problem in str(caught.value) and '\n' not in str(caught.value)


def test_ids_are_those_of_the_plain_text_and_each_word_has_its_weight(tokenizer):
  rng = random.Random(0)
  for caption in CAPTIONS:
    pieces = caption.replace(',', ' ,').split()
    chosen = [rng.choice((None, None, 0, .5, 1.25)) for _ in pieces]
    text = ' '.join(p if w is None else f'({p}:{w})' for p, w in zip(pieces, chosen))
    found, weights = encode_weighted(tokenizer, text)
    plain = tokenizer.encode(' '.join(pieces))
    assert (found.ids == plain.ids).all() and found.count == plain.count and found.cut == plain.cut
    word = [tokenizer.encode(p).count - 2 for p in pieces]  # ids of each; no token spans two
    spaces = tokenizer.facts['kind'] == 'bytes'
    expected = [w for p, n in zip(chosen, word) for w in [1. if p is None else p] * n + [1.] * spaces]
    expected = np.array([1., *expected, *[1.] * 300])[:len(weights)]
    expected[found.count - 1:] = 1  # the end, and where the text is cut
    np.testing.assert_array_equal(weights, expected.astype(np.float32))


def test_brackets_take_in_whole_tokens(tokenizer):
  kind = tokenizer.facts['kind']
  for text in ('a gre(en:2) hero', 'a (!:2)! hero'):
    if kind == 'bytes' or (kind == 'words' and '!' in text):  # there a letter, or a sign, is a token
      weights = encode_weighted(tokenizer, text)[1]
      assert (weights == 2).sum() == text.index(':') - text.index('(') - 1
    else:
      with pytest.raises(InputError, match='ends in a word'):
        encode_weighted(tokenizer, text)
  found, weights = encode_weighted(tokenizer, '(' + 'hero ' * 99 + ':2) hero (a:3)')
  assert found.cut and (weights[1:found.count - 1] == 2).all() and weights[found.count - 1] == 1
