"""Tokens that are bytes: any text, without a vocabulary."""
from diffusion.text.base import check_whole, Encoded, framed, SPECIALS, Tokenizer, valid


def utf8(length=104, *, fitted=None):
  """The Tokenizer of UTF-8: id 0 is padding, 1 begin, 2 end, 3 is not used, 4 + b is the byte b. It cleans nothing.

  Args:
    length: ids of a text, begin and end among them. A cut leaves no part of a character.
    fitted: not used: there is no vocabulary.
  Raises:
    InputError: a length below 3.
  """
  check_whole('bytes', 3, length=length)

  def encode(text):
    text = valid(text)
    data = text.encode()
    kept = data[:length - 2].decode(errors='ignore')  # a character that is cut is the last
    ids, count = framed([SPECIALS + byte for byte in kept.encode()], length)
    return Encoded(ids, count, (), text[len(kept):], len(data) + 2)

  def decode(ids):
    return bytes(i - SPECIALS for i in ids if i >= SPECIALS).decode(errors='replace')

  size = SPECIALS + 256
  return Tokenizer(encode, decode, size, dict(kind='bytes', length=length, size=size), {})
