"""CLIP's byte pairs: against merging whole strings rank by rank, another library, and the text itself."""
import gzip
import json
import random
import unicodedata

import numpy as np
import pytest

from diffusion.data import sprites
from diffusion.errors import InputError
from diffusion.system import tensors
from diffusion.text import rebuild, tokenize, TOKENIZERS
from diffusion.text.bpe import clean, pieces
from tests.text import vocabularies

clip = TOKENIZERS['clip']
CAPTIONS = sprites.generate(60, 0, 0)[0].arrays['captions'][:].tolist()


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  """(path of a folder, its merges)."""
  pairs = vocabularies.merges(600)
  return vocabularies.write_folder(tmp_path_factory.mktemp('small') / 'tokenizer', pairs), pairs


def by_rank(words, pairs, order):
  """Ids of words: each symbol in brackets, and each pair in turn replaced everywhere, in the order of the ranks."""
  spelled = lambda word: ''.join(f'[{vocabularies.SYMBOL[byte]}]' for byte in word.encode())
  text = '\n'.join(spelled(word)[:-1] + '</w>]' for word in words)
  for a, b in pairs:
    text = text.replace(f'[{a}][{b}]', f'[{a}{b}]')
  number = {token: i for i, token in enumerate(order)}
  return [number[token] for line in text.split('\n') for token in line[1:-1].split('][')]


def test_every_published_form_merges_as_whole_strings_rank_by_rank(tmp_path):
  pairs, words = vocabularies.merges(vocabularies.PUBLISHED), vocabularies.random_words(300)
  paths = [vocabularies.write_text(tmp_path / name, pairs) for name in ('bpe.txt', 'bpe.txt.gz')]
  paths.append(vocabularies.write_folder(tmp_path / 'folder', pairs))
  words += vocabularies.random_words(1, 2, longest=5000) + ['a' * 50, 'é' * 31]
  expected = by_rank(words, pairs, vocabularies.tokens(pairs))
  assert len(expected) < len(''.join(words).encode()) * .7  # many are merged
  made = [clip(path, length=len(expected) + 2) for path in paths]
  for tokenizer in made:
    found = tokenizer.encode(' '.join(words))
    assert found.ids.tolist() == [49406, *expected, 49407] and found.cut == '' and tokenizer.size == 49408
    assert tokenizer.decode(found.ids) == ' '.join(words)
  assert made[0].facts == made[1].facts == made[2].facts
  assert made[0].encode('!').ids[1] == 256  # '!' is byte 0 of the published order, and here the end of a word


def test_other_sizes_and_other_orders_of_ids(tmp_path):
  pairs, words = vocabularies.merges(500, seed=1), vocabularies.random_words(200, seed=1)
  order = [*vocabularies.tokens(pairs), '<|added|>']
  random.Random(0).shuffle(order)
  tokenizer = clip(vocabularies.write_folder(tmp_path / 'folder', pairs, order), length=3000)
  found = tokenizer.encode(' '.join(words))
  ids = found.ids[:found.count].tolist()
  assert ids[1:-1] == by_rank(words, pairs, order) and tokenizer.size == 512 + 500 + 3
  assert [order[i] for i in (ids[0], ids[-1])] == ['<|startoftext|>', '<|endoftext|>']


def test_200_examples_have_the_ids_of_the_library_tokenizers(small):
  hf = pytest.importorskip('tokenizers', reason='the library tokenizers is not installed')
  path, pairs = small
  vocabulary = {token: i for i, token in enumerate(vocabularies.tokens(pairs))}
  other = hf.Tokenizer(hf.models.BPE(vocabulary, pairs, end_of_word_suffix='</w>', continuing_subword_prefix=''))
  other.normalizer = hf.normalizers.Sequence([hf.normalizers.NFC(), hf.normalizers.Lowercase()])
  pattern = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
  other.pre_tokenizer = hf.pre_tokenizers.Sequence([
    hf.pre_tokenizers.Split(hf.Regex(pattern), 'removed', invert=True),
    hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
  tokenizer = clip(path, length=500)
  hand = ["It's 1,234 o'clock!!! WE'LL don't they're",
          'naïve  café\n½ Ⅷ ①', '你好 नमस्ते 🙂!?', "'s's a_b-c/d ...'d"]
  examples = [*hand, *CAPTIONS[:50], *vocabularies.random_words(46, 3), *vocabularies.random_unicode(100)]
  for text in examples:
    found = tokenizer.encode(text)
    assert found.ids[1:found.count - 1].tolist() == other.encode(text).ids, text
  assert len(examples) == 200


def test_texts_split_as_the_published_pattern_does():
  cases = {"don't": ['don', "'t"], "we'llx": ['we', "'ll", 'x'], 'a12½': ['a', '1', '2', '½'], "!!'s": ["!!'", 's'],
           "'s": ["'s"], 'x<|endoftext|>y': ['x', '<|endoftext|>', 'y'],
           'é_-1': ['é', '_-', '1'], 'Ⅷ一': ['Ⅷ', '一'],
           'नमस्ते': ['नमस', '्', 'त', 'े'], "i'd!": ['i', "'d", '!']}
  cases |= {f"a'{end}": ['a', f"'{end}"] for end in ('s', 't', 're', 've', 'm', 'll', 'd')} | {"a'x": ['a', "'", 'x']}
  for word, expected in cases.items():
    assert pieces(word) == expected
  kind = lambda c: {'L': 'L', 'N': 'N'}.get(unicodedata.category(c)[0], 'other')
  for text in vocabularies.random_unicode(200):
    for word in text.replace("'", '').split():
      found = pieces(word)
      kinds = [[kind(c) for c in piece] for piece in found]
      assert ''.join(found) == word and all(len({*k}) == 1 for k in kinds)
      assert all(a[0] != b[0] or a[0] == 'N' for a, b in zip(kinds, kinds[1:]))
      assert all(len(k) == 1 for k in kinds if k[0] == 'N')


def test_texts_come_back_as_they_are_cleaned(small):
  tokenizer = clip(small[0], length=2000)
  back = lambda text: tokenizer.decode(tokenizer.encode(text).ids)
  assert back(' A  Gray&amp;amp;white\n CAFE\u0301&lt;3 ') == 'a gray & white café < 3'
  assert clean('&amp;lt;b&amp;gt;') == '<b>' and clean('x\ud800') == 'x\ufffd'
  for text in CAPTIONS:
    assert back(text).replace(' ,', ',').replace(' - ', '-') == text
  for text in vocabularies.random_unicode(300):
    assert back(text).split() == [piece for word in clean(text).split() for piece in pieces(word)]
    assert ''.join(back(text).split()) == ''.join(unicodedata.normalize('NFC', text).lower().split())
  long = ' '.join(vocabularies.random_words(1000, 5, 'abcdéxyzß', 6))
  assert clip(small[0], length=10_000).encode(long).cut == ''
  assert (whole := clip(small[0], length=10_000)).decode(whole.encode(long).ids) == long


def test_begin_and_end_stay_and_what_is_cut_is_named(small):
  text = ' '.join(vocabularies.random_words(9, 2, 'xyz'))  # no merges: a token is a letter
  whole = clip(small[0], length=500).encode(text)
  for length in range(3, whole.count + 3):
    tokenizer = clip(small[0], length)
    found = tokenizer.encode(text)
    begin, end = tokenizer.size - 2, tokenizer.size - 1
    room = min(length, whole.count) - 2
    assert found.ids[:found.count].tolist() == [begin, *whole.ids[1:1 + room], end]
    assert (found.ids[found.count:] == end).all() and found.needed == whole.count
    starts = np.cumsum([0, *map(len, text.split())])
    assert found.cut.split() == [word for word, start in zip(text.split(), starts) if start + len(word) > room]
  zero, ends = clip(small[0], pad=0).encode('ab!'), clip(small[0], pad='end').encode('ab!')
  assert zero.count == ends.count and (zero.ids[:zero.count] == ends.ids[:ends.count]).all()
  assert (zero.ids[zero.count:] == 0).all() and clip(small[0], pad=0).decode(zero.ids) == 'ab !'
  for options in (dict(length=2), dict(length=8.), dict(length=True), dict(pad=1), dict(pad=False), dict(pad='eos')):
    with pytest.raises(InputError, match=next(iter(options)) + '='):
      clip(small[0], **options)


def test_it_comes_back_from_a_checkpoint_without_its_file(small):
  tokenizer = clip(small[0], length=30, pad=0)
  facts = json.loads(json.dumps(tokenizer.facts))
  again = rebuild(facts, tensors.from_text(tensors.to_text(tokenizer.fitted)))
  for a, b in zip(tokenize(tokenizer, CAPTIONS), tokenize(again, CAPTIONS)):
    assert np.array_equal(a, b)
  with pytest.raises(InputError, match='another checkpoint'):
    rebuild(facts | dict(size=3), tokenizer.fitted)


def _faults(folder, pairs):
  """{name: (path, what the message says)} of files that are no vocabulary."""
  rows = [' '.join(pair) for pair in pairs]
  def text(name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(folder / name)
  def two(name, merges=rows, order=None, vocab=None):
    path = vocabularies.write_folder(folder / name, pairs, order)
    (folder / name / 'merges.txt').write_text('\n'.join(['#version: 0.2', *merges]))
    if vocab is not None:
      (folder / name / 'vocab.json').write_text(vocab)
    return path
  whole, packed = vocabularies.tokens(pairs), gzip.compress(b'#version: 0.2\na b')
  (folder / 'void').mkdir()
  return {
    'no path': ('', 'expected CLIP'), 'missing': (str(folder / 'none.txt'), 'cannot be read'),
    'empty': (text('empty', ''), '#version'), 'binary': (text('binary', bytes(range(256))), 'cannot be read'),
    'header': (text('header', '\n'.join(rows)), '#version'), 'half gz': (text('half', packed[:-9]), 'cannot be read'),
    'broken gz': (text('broken', packed[:12] + b'xxxx' + packed[16:]), 'cannot be read'),
    'short': (vocabularies.write_text(folder / 'short.txt', pairs[:300]), 'not complete'),
    'few': (text('few', '#version: 0.2\na b\n'), 'not complete'), 'void': (str(folder / 'void'), 'merges.txt'),
    'three': (two('three', [*rows[:5], 'a b c']), 'line 7'), 'not JSON': (two('json', vocab='{"a": 0'), 'JSON'),
    'list': (two('list', vocab='["a"]'), 'JSON'), 'texts': (two('texts', vocab='{"a": "0"}'), '0 to 0'),
    'gap': (two('gap', vocab=json.dumps({t: 2 * i for i, t in enumerate(whole)})), 'each once'),
    'no end': (two('end', order=whole[:-1]), 'lacks the tokens'), 'no byte': (two('byte', order=whole[9:]), 'lacks'),
    'other merges': (two('other', [' '.join(p) for p in vocabularies.merges(600, 9)]), 'not of one tokenizer'),
    'twice': (vocabularies.write_text(folder / 'twice.txt', (pairs * 82)[:48_894]), 'the same token'),
    'damaged': (vocabularies.write_text(folder / 'd.txt', [(f'x{i}', 'y') for i in range(48_894)]), "pair 'x0' 'y'"),
    'half of merges': (two('part', rows[:-20]), '20 such tokens'), 'no merges': (two('bare', []), '600 such tokens')}


def test_what_is_no_vocabulary_is_one_clear_line(tmp_path, small):
  for name, (path, expected) in _faults(tmp_path, small[1]).items():
    with pytest.raises(InputError) as caught:
      clip(path)
    message = str(caught.value)
    assert expected in message and '\n' not in message and path in message, (name, message)
