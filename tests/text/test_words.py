"""Words and bytes: their vocabularies, what comes back, and what the user is told."""
import collections
import json
import random
import re

import numpy as np
import pytest

from diffusion.data import sprites
from diffusion.errors import InputError
from diffusion.system import tensors
from diffusion.text import notes, rebuild, require, tokenize, TOKENIZERS
from diffusion.text.words import split
from tests.text import vocabularies

words, utf8 = TOKENIZERS['words'], TOKENIZERS['bytes']
CAPTIONS = sprites.generate(200, 0, 0)[0].arrays['captions'][:].tolist()


def test_the_vocabulary_is_that_of_the_captions_most_frequent_first():
  tokenizer = words(CAPTIONS)
  count = collections.Counter(' '.join(CAPTIONS).replace(',', ' ,').split())
  by_id = [tokenizer.decode([i]) for i in range(4, tokenizer.size)]
  assert set(by_id) == set(count) and all((-count[a], a) < (-count[b], b) for a, b in zip(by_id, by_id[1:]))
  shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
  assert words(shuffled).facts == tokenizer.facts != words(CAPTIONS[:50]).facts
  few = words(CAPTIONS, most=5)
  assert few.size == 9 and [few.decode([i]) for i in range(4, 9)] == by_id[:5]


def test_captions_come_back():
  ids, counts, lines = tokenize(tokenizer := words(CAPTIONS), CAPTIONS)
  assert [tokenizer.decode(row).replace(' ,', ',') for row in ids] == CAPTIONS and lines == []
  inside = np.arange(24) < counts[:, None]
  assert ((ids != 0) == inside).all() and (ids[:, 0] == 1).all() and (ids[np.arange(200), counts - 1] == 2).all()
  assert not ((ids == 1) | (ids == 2))[:, 1:][np.arange(1, 24) < counts[:, None] - 1].any()


def test_any_text_comes_back_as_its_words():
  texts = [text.replace('\ufffd', '') for text in vocabularies.random_unicode(300)]
  tokenizer = words(texts, length=64)
  for text in texts:
    back = tokenizer.decode(tokenizer.encode(text).ids)
    assert back == ' '.join(split(text)) and split(back) == split(text)
  for text in CAPTIONS + texts:
    plain = ''.join(c for c in text if c.isascii())
    assert split(plain) == re.findall(r"[a-z\d_]+(?:['-][a-z\d_]+)*|[^\sa-z\d_]", plain.lower())
  assert split('Cafe\u0301, CAFÉ!') == ['café', ',', 'café', '!']
  assert split("नमस्ते two-headed don’t 'no' -x- 3.5") == [
    'नमस्ते', 'two-headed', 'don’t', "'", 'no', "'", '-', 'x', '-', '3', '.', '5']


def test_bytes_are_those_of_utf_8_and_no_character_is_cut_in_two():
  for text in [*CAPTIONS[:20], *vocabularies.random_unicode(100), ' A\n\t é🙂 ', '']:
    data = text.encode()
    for length in (3, 4, 5, 17, 200):
      found = utf8(length).encode(text)
      kept = utf8(length).decode(found.ids)
      assert (found.ids[1:found.count - 1] - 4).tolist() == list(kept.encode()) and kept + found.cut == text
      assert found.ids[0] == 1 and found.ids[found.count - 1] == 2 and not found.ids[found.count:].any()
      room = length - 2 - len(kept.encode())
      assert room >= 0 and (not found.cut or len(found.cut[0].encode()) > room) and found.needed == len(data) + 2
  assert utf8().decode(utf8().encode('x\udc80').ids) == 'x\ufffd'


def test_a_batch_is_each_alone_and_a_checkpoint_holds_all_of_it():
  for tokenizer in (words(CAPTIONS, most=30), utf8(), words()):
    ids, counts, lines = tokenize(tokenizer, CAPTIONS)
    fitted = tensors.from_text(tensors.to_text(tokenizer.fitted))
    again = rebuild(json.loads(json.dumps(tokenizer.facts)), fitted)
    for text, row, count in zip(CAPTIONS, ids, counts):
      found = again.encode(text)
      assert (found.ids == row).all() and found.count == count
    assert again.decode(ids[0]) == tokenizer.decode(ids[0]) and again.facts == tokenizer.facts
  with pytest.raises(InputError, match='another checkpoint'):
    rebuild(words(CAPTIONS).facts, words(CAPTIONS[:50]).fitted)


def test_what_a_data_set_loses_is_said():
  tokenizer = words(['a red fox', 'a blue fox'], length=6)
  ids, counts, lines = tokenize(tokenizer, ['a red fox', 'a green fox', 'a green, red, blue fox', 'a blue cat', ''])
  assert counts.tolist() == [5, 5, 6, 5, 2] and ids[4].tolist() == [1, 2, 0, 0, 0, 0] and len(lines) == 2
  assert '1 of 5 texts' in lines[0] and 'needs 9' in lines[0] and "loses ', blue fox'" in lines[0]
  assert '3 of 5 texts' in lines[1] and lines[1].endswith("'green', ',', 'cat'")
  assert words(['a red fox'], length=9).encode('a red fox, a').cut == ''
  many = tokenize(tokenizer, [' '.join(vocabularies.random_words(4, 1, 'xyz'))] + [c for c in 'ghijkl'])[2]
  assert many[-1].endswith(' more')


def test_a_prompt_must_have_a_word_that_is_known():
  tokenizer = words([*CAPTIONS, 'a small fox'], length=6)
  with pytest.raises(InputError, match=r"prompt='heroo, zzzz'.*'heroo'; did you mean 'hero'\?.* more$") as caught:
    require(tokenizer, 'heroo, zzzz', 'prompt')
  assert '\n' not in str(caught.value)
  with pytest.raises(InputError, match="prompt: expected a text, got 'None' of type NoneType"):
    require(tokenizer, None, 'prompt')
  with pytest.raises(InputError, match='text 1: expected a text'):
    tokenize(tokenizer, ['a', np.zeros((3, 3))])
  assert notes(require(tokenizer, '', 'prompt'), 'prompt') == []
  found = require(tokenizer, 'a purplish hero with a crown and a sword', 'prompt')
  said = notes(found, 'prompt')
  assert found.unknown == ('purplish',) and found.ids[2] == 3 and len(said) == 2
  assert "'purplish'" in said[0] and "'a crown and a sword'" in said[1] and 'needs 11' in said[1]
  assert tokenizer.decode(found.ids) == 'a \ufffd hero with' and require(utf8(), 'ξ', 'prompt').unknown == ()


@pytest.mark.parametrize('options', [dict(length=2), dict(length=3.), dict(length=True), dict(most=0)])
def test_other_sizes_are_refused(options):
  with pytest.raises(InputError, match=f'words.{next(iter(options))}='):
    words(CAPTIONS, **options)
