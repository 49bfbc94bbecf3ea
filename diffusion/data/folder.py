"""The images in a folder, and their classes and captions: sub-folders, metadata.jsonl, .txt files."""
import collections
import json
import os
import pathlib
from typing import NamedTuple

from PIL import Image

from diffusion.errors import InputError

_UNREADABLE = {'BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF'}  # Pillow knows these formats but cannot read them
_KNOWN_TEXT = {'.txt', '.jsonl'}
_PARTS = {'train': 'train', 'test': 'heldout', 'val': 'heldout', 'valid': 'heldout', 'validation': 'heldout'}


class Listing(NamedTuple):
  names: list  # paths relative to the root, sorted
  part: list  # 'train' or 'heldout' for each image, or None for each: not split yet
  labels: list  # class name for each, or [] if unlabelled
  captions: list  # text for each, or []
  attributes: list  # dict for each, or []
  notes: list


def listing(root, labelled=True):
  """Lists the images below `root`, without hidden files and folders and files of other types.

  Args:
    root: the folder.
    labelled: whether the first sub-folder is the class. Sub-folders train and test (or val, valid, validation) are the
      two sides of the split, not classes.
  Raises:
    InputError: no such folder or no images in it; metadata.jsonl that is invalid or names other files; images beside
      the class sub-folders.
  """
  root = pathlib.Path(root).expanduser()
  if not root.is_dir():
    raise InputError(f'{root}: no such folder')
  names, notes = _find(root)
  metadata = _metadata(root)
  if metadata:
    missing = sorted(set(metadata) - set(names))
    if missing:
      raise InputError(f'{root}/metadata.jsonl: {missing[0]} is not an image in this folder '
                       f'({len(missing)} such lines)')
    if len(metadata) < len(names):
      notes.append(f'{len(names) - len(metadata)} images skipped that metadata.jsonl does not list')
    names = [name for name in names if name in metadata]
  if not names:
    skipped = f' ({notes[0]})' if notes else ''
    raise InputError(f'{root}: no images in this folder; expected .png, .jpg, ... or sub-folders of them{skipped}')
  parts, classes = _folders(root, names, labelled)
  captions, attributes = _texts(root, names, metadata, notes)
  return Listing(names, parts, classes, captions, attributes, notes)


def stamp(path):
  """(size in bytes, modification time), from which a changed file is recognised; None for a dangling link."""
  try:
    status = path.stat()
  except OSError:
    return None
  return status.st_size, status.st_mtime_ns


def _find(root):
  Image.init()
  readable = {ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN
              and kind not in _UNREADABLE}
  names, others = [], collections.Counter()
  for folder, subfolders, files in os.walk(root):
    subfolders[:] = sorted(name for name in subfolders if not name.startswith(('.', '__')))
    for file in files:
      ending = os.path.splitext(file)[1].lower()
      if file.startswith('.') or ending in _KNOWN_TEXT:
        continue
      if ending in readable:
        names.append((pathlib.Path(folder) / file).relative_to(root).as_posix())
      else:
        others[ending or 'no ending'] += 1
  kinds = ', '.join(f'{count} {ending}' for ending, count in others.most_common(4))
  return sorted(names), [f'{others.total()} files of other types skipped: {kinds}'] if others else []


def _metadata(root):
  """Reads metadata.jsonl in the root and below: {name relative to the root: its other fields}."""
  records = {}
  for path in sorted(root.rglob('metadata.jsonl')):
    for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
      if not line.strip():
        continue
      try:
        fields = json.loads(line)
        name = (path.parent.relative_to(root) / fields.pop('file_name')).as_posix()
      except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f'{path}, line {number}: expected {{"file_name": ..., "text": ...}}, '
                         f'got {line[:80]}') from error
      records[name] = fields
  return records


def _folders(root, names, labelled):
  """(part, labels) of a Listing."""
  paths = [name.split('/') for name in names]
  parts = [None] * len(names)
  tops = {path[0].lower() for path in paths if len(path) > 1}
  if 'train' in tops and tops <= set(_PARTS) and all(len(path) > 1 for path in paths):
    parts = [_PARTS[path[0].lower()] for path in paths]
    paths = [path[1:] for path in paths]
  nested = [len(path) > 1 for path in paths]
  if not labelled or not any(nested):
    return parts, []
  if not all(nested):
    beside = names[nested.index(False)]
    raise InputError(f'{root}: {nested.count(False)} images are beside the class sub-folders, '
                     f'such as {beside}; move them into one, or set labelled=False to ignore the sub-folders')
  return parts, [path[0] for path in paths]


def _texts(root, names, metadata, notes):
  """(captions, attributes) of a Listing; adds to the notes."""
  if metadata:
    captions = [str(metadata[name].pop('text', None) or '') for name in names]
    attributes = [metadata[name] for name in names]
  else:
    beside = [(root / name).with_suffix('.txt') for name in names]
    captions = [path.read_text(encoding='utf-8').strip() if path.is_file() else '' for path in beside]
    attributes = []
  if any(captions) and not all(captions):
    notes.append(f'{captions.count("")} of {len(captions)} images have no caption')
  return captions if any(captions) else [], attributes if any(attributes) else []
