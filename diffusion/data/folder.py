"""The images in a folder, and their classes and sides of the split: sub-folders. Whatever is left out is said."""
import collections
import hashlib
import os
import pathlib
import re
import unicodedata
from typing import NamedTuple

from PIL import Image

from diffusion.data.captions import read_captions
from diffusion.errors import InputError, shown

_UNREADABLE = {'BUFR', 'GRIB', 'HDF5', 'MPEG', 'WMF'}  # Pillow knows these formats but cannot read them
_WORDS = re.compile('[-_ ]?(set|data|images)$')  # of names such as test_set
_PARTS = dict(train='train', training='train') | dict.fromkeys(
  ('test', 'testing', 'val', 'valid', 'validation', 'eval', 'heldout'), 'heldout')


class Listing(NamedTuple):
  names: list  # paths relative to the root, sorted
  part: list  # 'train' or 'heldout' for each image, or None for each: not split yet
  labels: list  # class name for each, or [] if unlabelled
  captions: list  # text for each, or []
  attributes: list  # dict for each, or []
  notes: list


class Found(NamedTuple):
  """What a walk through a folder finds: paths relative to it."""
  images: list
  texts: list     # .txt files
  metadata: list  # metadata.jsonl
  empty: list     # folders without an image in or below them
  left_out: dict  # why -> paths
  repeated: list  # (path, the path of the same folder): linked more than once


def listing(root, labelled=True):
  """Lists the images below `root`; links are followed. Hidden files and files of other types are left out and noted.

  Args:
    root: the folder.
    labelled: whether the first sub-folder is the class. Sub-folders train and test (or val, validation, ..) are the
      two sides of the split, not classes.
  Raises:
    InputError: no such folder or no images in it; metadata.jsonl that is invalid or names other files; images beside
      the class sub-folders; train and test beside other folders.
  """
  root = pathlib.Path(os.path.expanduser(root))
  if not root.is_dir():
    raise InputError(f'{root}: ' + ('this is no folder' if root.exists() else 'no such folder'))
  found = walk(root)
  notes = _notes(found)
  if not found.images:
    skipped = f' ({"; ".join(notes)})' if notes else ''
    raise InputError(f'{root}: no images in this folder; expected .png, .jpg, ... or sub-folders of them{skipped}')
  texts = read_captions(root, found)
  names, notes = texts.names, notes + texts.notes
  parts, classes, said = _folders(root, names, labelled)
  return Listing(names, parts, classes, texts.captions, texts.attributes, notes + said)


def stamp(path):
  """(size in bytes, modification time), from which a changed file is recognised; None for a dangling link."""
  try:
    status = path.stat()
  except OSError:
    return None
  return status.st_size, status.st_mtime_ns


def contents(root, names, most=2 ** 16):
  """A hash of the first bytes of some files, from which others of the same size are told."""
  digest = hashlib.blake2b(digest_size=16)
  for name in names:
    if (root / name).is_file():
      with open(root / name, 'rb') as file:
        digest.update(file.read(most))
  return digest.hexdigest()


def _kind(entry):
  """'folder', 'file', 'other' such as a device, or 'broken': a link to nothing or to itself. Links are followed."""
  if not entry.is_symlink():  # known without asking the disk
    return 'folder' if entry.is_dir() else 'file' if entry.is_file() else 'other'
  path = entry.path
  return ('folder' if os.path.isdir(path) else 'file' if os.path.isfile(path) else
          'other' if os.path.exists(path) else 'broken')


def walk(root):
  """The Found of a folder: through links too, but not into a folder that is above itself."""
  Image.init()
  readable = {ending for ending, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in _UNREADABLE}
  found, places = Found([], [], [], [], collections.defaultdict(list), []), {}
  entered = collections.defaultdict(set)  # the real folders below each sub-folder of the root: each once
  def visit(folder, above):
    before = len(found.images)
    try:
      entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
    except OSError as error:
      found.left_out[f'folders that cannot be opened ({error.strerror})'].append(folder)
      return
    for entry in entries:
      path, ending, kind = os.path.join(folder, entry.name), os.path.splitext(entry.name)[1].lower(), _kind(entry)
      real, top = os.path.realpath(entry.path) if kind == 'folder' else '', path.split(os.sep)[0]
      if entry.name.startswith('.') or kind == 'folder' and entry.name.startswith('__'):
        found.left_out['hidden files and folders'].append(path)
      elif real in above:
        found.left_out['links to a folder that they are in'].append(path)
      elif real in entered[top]:
        found.left_out['links to a folder that is listed already'].append(path)
      elif kind == 'folder':
        entered[top].add(real)
        if places.setdefault(real, path) != path:
          found.repeated.append((path, places[real]))
        visit(path, {*above, real})
      elif kind == 'other' or kind == 'broken' and ending not in readable:  # a broken link to an image is unreadable
        found.left_out['broken links and devices'].append(path)
      else:
        where = (found.metadata if entry.name == 'metadata.jsonl' else found.texts if ending == '.txt' else
                 found.images if ending in readable else found.left_out['files of other types'])
        where.append(path)
    if len(found.images) == before and folder:
      found.empty.append(folder)
  visit('', {os.path.realpath(root)})
  found.images.sort()
  return found


def _notes(found):
  """One line for each kind of thing that is left out."""
  notes = []
  for why, paths in found.left_out.items():
    if why == 'files of other types':
      kinds = collections.Counter(os.path.splitext(path)[1].lower() or 'no ending' for path in paths)
      near = [path for path in paths if os.path.basename(path).lower().startswith('metadata.')]
      text = ', '.join(f'{count} {shown(ending)}' for ending, count in kinds.most_common(4))
      text += f'; {shown(near[0])} is not read: captions come from metadata.jsonl' if near else ''
    else:
      text = few(paths)
    notes.append(f'{len(paths)} {why} skipped: {text}')
  if found.empty:
    notes.append(f'{len(found.empty)} sub-folders hold no images: {few(found.empty)}')
  for path, same in found.repeated[:4]:
    notes.append(f'{shown(path)} and {shown(same)} are the same folder, so that its images count twice')
  return notes


def few(paths, most=4):
  """The first paths, separated by commas."""
  return ', '.join(map(shown, paths[:most])) + (', ..' if len(paths) > most else '')


def _folders(root, names, labelled):
  """(part, labels, notes) of a Listing."""
  paths = [name.split('/') for name in names]
  parts, paths, notes = _sides(root, paths)
  nested = [len(path) > 1 for path in paths]
  if not labelled or not any(nested):
    return parts, [], notes
  if not all(nested):
    beside = names[nested.index(False)]
    raise InputError(f'{root}: {nested.count(False)} images are beside the class sub-folders, '
                     f'such as {shown(beside)}; move them into one, or set labelled=False to ignore the sub-folders')
  labels = [unicodedata.normalize('NFC', path[0]) for path in paths]
  if len(set(labels)) < len({path[0] for path in paths}):
    notes.append('sub-folders whose names look the same, but are encoded in two Unicode forms, are one class')
  deep = sorted({'/'.join(path[:-1]) for path in paths if len(path) > 2})
  if deep:
    notes.append(f'{len(deep)} deeper sub-folders are no classes of their own: {few(deep)}')
  return parts, labels, notes


def _sides(root, paths):
  """(part of each image, what is left of its path, notes)."""
  tops = {path[0] for path in paths if len(path) > 1}
  part = lambda top: _PARTS.get(_WORDS.sub('', top.lower()))
  sides = {top for top in tops if part(top)}
  kinds = {part(top) for top in sides}
  whole = sides == tops and all(len(path) > 1 for path in paths)
  if 'train' in kinds and whole:
    held = sorted(top for top in sides if part(top) == 'heldout')
    note = f'held out: what is in {", ".join(held) or "no sub-folder"}; heldout and seed are not used'
    return [part(path[0]) for path in paths], [path[1:] for path in paths], [note]
  classes_inside = any(path[0] in sides and len(path) > 2 and path[1] in tops for path in paths)
  if kinds == {'train', 'heldout'} or kinds == {'heldout'} and (whole or classes_inside):
    others = sorted(tops - sides) or [path[0] for path in paths if len(path) == 1]
    what = f'beside {few(others)}' if others else 'without train'
    raise InputError(f'{root}: sub-folders {", ".join(sorted(sides))} {what}: if they are the sides of the split, '
                     'leave train and test alone in this folder; if they are classes, rename them')
  return [None] * len(paths), paths, []
