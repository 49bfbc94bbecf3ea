"""Texts as ids for a text encoder: words of the captions, bytes, or CLIP's byte pairs; weights of parts of a prompt."""
from diffusion.errors import InputError
from diffusion.text.base import Encoded, notes, require, tokenize, Tokenizer
from diffusion.text.bpe import clip
from diffusion.text.utf8 import utf8
from diffusion.text.weights import encode_weighted, weighted
from diffusion.text.words import words

__all__ = ['Encoded', 'Tokenizer', 'TOKENIZERS', 'encode_weighted', 'notes', 'rebuild', 'require', 'tokenize',
           'weighted']
TOKENIZERS = dict(words=words, bytes=utf8, clip=clip)


def rebuild(facts, fitted):
  """The Tokenizer that has these facts and fitted arrays, as a checkpoint holds them.

  Raises:
    InputError: they do not belong together.
  """
  options = {name: facts[name] for name in ('length', 'pad') if name in facts}
  tokenizer = TOKENIZERS[facts['kind']](**options, fitted=fitted)
  if tokenizer.facts != facts:
    raise InputError(f'the stored vocabulary gives {tokenizer.facts}, not {facts}: it is that of another checkpoint')
  return tokenizer
