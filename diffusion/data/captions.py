"""Captions of image files: metadata.jsonl (`file_name`, `text`, other fields), or a .txt file beside each image."""
import collections
import json
import os
import posixpath
import unicodedata
from typing import NamedTuple

from diffusion.errors import InputError, shown
from diffusion.system.files import read_text


class Texts(NamedTuple):
  names: list       # of the images that are kept
  captions: list    # of each, a text or a list of several; or []
  attributes: list  # a dict of each, or []
  notes: list


def same_form(name):
  """A file name in the one Unicode form in which names are compared: systems differ in how they write é."""
  return unicodedata.normalize('NFC', name)


def read_captions(root, found):
  """The Texts of the images of folder.walk.

  Raises:
    InputError: a file that is not text, a line that is no record, names an image twice or one that does not exist, or
      whose text is none.
  """
  records = {}
  for path in found.metadata:
    _read_records(root, path, records)
  if not records:
    empty = ['metadata.jsonl is empty'] if found.metadata else []
    return _from_text_files(root, found, empty)
  images = _by_form(found.images)
  missing = [name for name in records if name not in images]
  if missing:
    folded = {name.casefold(): name for name in images}
    close = folded.get(missing[0].replace('\\', '/').casefold())
    hint = f'; did you mean {shown(close)}?' if close else ''
    raise InputError(f'{root}/metadata.jsonl: {shown(missing[0])} is not an image in this folder '
                     f'({len(missing)} such lines){hint}')
  covered = tuple('' if path == 'metadata.jsonl' else path.removesuffix('metadata.jsonl') for path in found.metadata)
  names = [name for form, name in images.items() if form in records or not name.startswith(covered)]
  kept = [records.get(same_form(name), ('', {})) for name in names]
  captions = [fields.pop('text', None) or '' for _, fields in kept]
  attributes = [fields for _, fields in kept]
  notes = [f'{len(images) - len(names)} images skipped that metadata.jsonl does not list'] * (len(names) < len(images))
  notes += [f'{len(found.texts)} .txt files are not read, since there is metadata.jsonl'] * bool(found.texts)
  fields = collections.Counter(field for fields in attributes for field in fields)
  if not any(captions) and fields:
    most = ', '.join(shown(field) for field, _ in fields.most_common(6))
    notes.append(f'no captions: metadata.jsonl has no field text, but {most}')
  return _said(Texts(names, captions, attributes, notes))


def _by_form(names):
  """{name in the one Unicode form: name}; raises InputError if two look the same."""
  forms = {}
  for name in names:
    other = forms.setdefault(same_form(name), name)
    if other != name:
      raise InputError(f'{ascii(other)} and {ascii(name)} look the same, so that it is unclear whose captions are '
                       'whose; rename one')
  return forms


def _unique(pairs):
  """A dict of pairs; ValueError for a name that is there twice."""
  if len(dict(pairs)) < len(pairs):
    raise ValueError('a field is there twice')
  return dict(pairs)


def _read_records(root, path, records):
  """Adds {name relative to the root: (where it is, its other fields)} of a metadata.jsonl."""
  for number, line in enumerate(read_text(root / path).split('\n'), 1):  # other line ends may be inside a text
    if not line.strip():
      continue
    where = f'{root / path}, line {number}'
    try:
      fields = json.loads(line, object_pairs_hook=_unique)
      name = fields.pop('file_name')
      given = same_form(posixpath.normpath(posixpath.join(os.path.dirname(path), name)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
      raise InputError(f'{where}: expected {{"file_name": ..., "text": ...}}, got {shown(line[:80])}') from error
    if given in records:
      raise InputError(f'{where}: {shown(name)} has a line already ({records[given][0]}); keep one of them')
    text = fields.get('text')
    if not isinstance(text, str | None) and not (isinstance(text, list) and all(isinstance(t, str) for t in text)):
      raise InputError(f'{where}: text must be a text in quotes, or a list of some, got {shown(str(text)[:60])}')
    records[given] = where, fields


def _from_text_files(root, found, notes):
  """The Texts of .txt files beside the images."""
  if not found.texts:
    return Texts(found.images, [], [], notes)
  stem = lambda name: same_form(os.path.splitext(name)[0])
  beside = collections.defaultdict(list)
  for text in found.texts:
    beside[stem(text)].append(text)
  twice = next((texts for texts in beside.values() if len(texts) > 1), None)
  if twice:
    raise InputError(f'{root}: {shown(twice[0])} and {shown(twice[1])} caption the same image; keep one of them')
  stems = collections.Counter(map(stem, found.images))
  read = {key: read_text(root / texts[0]).strip() for key, texts in beside.items() if key in stems}
  captions = [read.get(stem(name), '') for name in found.images]
  lost = [texts[0] for key, texts in beside.items() if key not in stems]
  if lost:
    notes.append(f'{len(lost)} .txt files belong to no image: {", ".join(map(shown, lost[:4]))}; '
                 'the caption of 0.png is 0.txt')
  shared = [texts[0] for key, texts in beside.items() if stems[key] > 1]
  if shared:
    notes.append(f'{len(shared)} .txt files are the caption of several images, such as {shown(shared[0])}')
  return _said(Texts(found.images, captions, [], notes))


def _said(texts):
  """The same, with a note on images without a caption."""
  captions, attributes, notes = texts.captions, texts.attributes, texts.notes
  if any(captions) and not all(captions):
    notes.append(f'{sum(not text for text in captions)} of {len(captions)} images have no caption')
  return Texts(texts.names, captions if any(captions) else [], attributes if any(attributes) else [], notes)
