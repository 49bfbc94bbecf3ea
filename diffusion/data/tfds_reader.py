"""Data sets prepared by TFDS, read by random access without TensorFlow in the process."""
import functools
import io
import json
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from diffusion.data import decode_images, stream
from diffusion.errors import InputError

_CHUNK = 1024


def find(name, data_dir):
  """(folder of a prepared data set, its dataset_info.json as a dict).

  Args:
    name: 'cifar10', 'name/config', 'name:version' or 'name/config:version'; without a version, the newest.
    data_dir: None is $TFDS_DATA_DIR or ~/tensorflow_datasets.
  Raises:
    InputError: it is not prepared, with the command that prepares it; several configurations; another file format.
  """
  data_dir = pathlib.Path(os.path.expanduser(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'))
  base, _, version = name.partition(':')
  command = (f'tfds build {base.partition("/")[0]} --file_format=array_record --data_dir={data_dir} '
             '(this step alone needs TensorFlow)')
  infos = [path for pattern in ('*', '*/*') for path in (data_dir / base).glob(f'{pattern}/dataset_info.json')
           if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name) and version in ('', path.parent.name)]
  if not infos:
    raise InputError(f'data set {name!r} is not prepared in {data_dir}: '
                     f'give another data_dir, or run {command}')
  configs = sorted({path.parent.parent.name for path in infos})
  if len(configs) > 1:
    raise InputError(f'data set {name!r} is prepared in several configurations; name one, such as '
                     f'{base}/{configs[0]} (available: {", ".join(configs)})')
  newest = max(infos, key=lambda path: [int(number) for number in path.parent.name.split('.')])
  info = json.loads(newest.read_text(encoding='utf-8'))
  if info.get('fileFormat') != 'array_record':
    raise InputError(f'data set {name!r} in {newest.parent} is stored as {info.get("fileFormat")}, '
                     f'which only TensorFlow reads; prepare it again as array_record: {command}')
  return newest.parent, info


def pick_splits(info, train, heldout):
  """(train, heldout), checked; heldout None becomes 'test' or 'validation' if available, else ''."""
  names = [split['name'] for split in info['splits']]
  if heldout is None:
    heldout = next((name for name in ('test', 'validation') if name in names and name != train), '')
  for split in (train, heldout):
    if split and split.partition('[')[0] not in names:
      raise InputError(f'data set {info["name"]!r} has no split {split!r}; choose from {", ".join(names)}')
  return train, heldout


def read(folder, split, decode_options):
  """dict(images uint8 [N, H, W, C], labels int32 [N], classes str [K]); without labels: zeros and K = 0."""
  data = _open(str(folder), split)
  records = [record for chunk in _chunks(data.examples) for record in chunk]
  names = [f'{data.name} {i}' for i in range(len(records))]
  decode = _decoder(data, decode_options)
  images, _, _ = decode_images.read_all(decode, names, lambda i: io.BytesIO(records[i][data.image]), 'stop')
  labels = np.array([record[data.label] if data.label else 0 for record in records], np.int32)
  return dict(images=images, labels=labels, classes=_classes(data))


def read_labels(folder, split):
  """dict(labels int32 [N], classes str [K]), in one pass over the records without decoding images."""
  data = _open(str(folder), split)
  labels = np.zeros(len(data.examples), np.int32)
  if data.label:
    chunks = tqdm(_chunks(data.examples), 'reading labels (once)', -(-len(labels) // _CHUNK), delay=1, leave=False,
                  disable=None)
    labels = np.array([record[data.label] for chunk in chunks for record in chunk], np.int32)
  return dict(labels=labels, classes=_classes(data))


def open_stream(folder, split, decode_options):
  """A Stream of the images of a split; each process opens the files when it first reads them."""
  folder = str(folder)

  def fetch(numbers):
    data = _open(folder, split)
    records = data.examples.__getitems__([int(i) for i in numbers])
    return [(f'{data.name} {i}', io.BytesIO(record[data.image])) for i, record in zip(numbers, records)]

  data = _open(folder, split)
  mark = f'{os.path.realpath(folder)} {split}'  # the name of the folder is the version
  return stream.open_stream(fetch, _decoder(data, decode_options), len(data.examples), mark)


class _Split(NamedTuple):
  name: str  # data set and split
  examples: Any  # records by random access, with images as bytes
  image: str  # key of the image
  label: Any  # key of the class label, or None
  features: Any


@functools.lru_cache(maxsize=8)
def _open(folder, split):
  import tensorflow_datasets
  builder = tensorflow_datasets.builder_from_directory(folder)
  name, features = builder.info.name, builder.info.features
  image, label = _keys(features, name)
  skip = {image: tensorflow_datasets.decode.SkipDecoding()}
  return _Split(f'{name} {split}', builder.as_data_source(split=split, decoders=skip), image, label, features)


def _chunks(examples):
  for start in range(0, len(examples), _CHUNK):
    # Seven times as fast as one record at a time.
    yield examples.__getitems__(list(range(start, min(start + _CHUNK, len(examples)))))


def _decoder(data, options):
  channels = options.get('channels') or data.features[data.image].shape[-1] or 3
  return decode_images.decoder(**{**options, 'channels': channels})


def _classes(data):
  return np.array(data.features[data.label].names if data.label else [], str)


def _keys(features, name):
  """(key of the image, key of the class label or None)."""
  kinds = {key: type(feature).__name__ for key, feature in features.items()}
  image_keys = [key for key, kind in kinds.items() if kind == 'Image']
  label_keys = [key for key, kind in kinds.items() if kind == 'ClassLabel']
  if not image_keys:
    raise InputError(f'data set {name!r} holds no images, only {", ".join(kinds)}')
  best = lambda keys, default: default if default in keys else (keys[0] if keys else None)
  return best(image_keys, 'image'), best(label_keys, 'label')
