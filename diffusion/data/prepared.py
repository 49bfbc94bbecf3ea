"""Data sets prepared by TFDS, read by random access without TensorFlow in the process."""
import io
import json
import os
import pathlib
import re

import numpy as np

from diffusion.data import pictures
from diffusion.errors import InputError

_CHUNK = 1024


def find(name, data_dir):
  """-> (folder of the prepared data set, its dataset_info.json as a dict).

  name: 'cifar10', 'name/config', 'name:version' or 'name/config:version'. data_dir: None is $TFDS_DATA_DIR or
  ~/tensorflow_datasets. Raises InputError, with the command that prepares it, if it is not there.
  """
  data_dir = pathlib.Path(data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets').expanduser()
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
                     f'{base}/{configs[0]} (there are {", ".join(configs)})')
  newest = max(infos, key=lambda path: [int(number) for number in path.parent.name.split('.')])
  info = json.loads(newest.read_text(encoding='utf-8'))
  if info.get('fileFormat') != 'array_record':
    raise InputError(f'data set {name!r} in {newest.parent} is stored as {info.get("fileFormat")}, '
                     f'which only TensorFlow reads; prepare it once more as array_record: {command}')
  return newest.parent, info


def pick_splits(info, train, heldout):
  """Checks the names of the splits; heldout None takes 'test' or 'validation' if there is one, else ''."""
  names = [split['name'] for split in info['splits']]
  if heldout is None:
    heldout = next((name for name in ('test', 'validation') if name in names and name != train), '')
  for split in (train, heldout):
    if split and split.partition('[')[0] not in names:
      raise InputError(f'data set {info["name"]!r} has no split {split!r}; choose from {", ".join(names)}')
  return train, heldout


def read(folder, split, decode_options):
  """-> dict(images uint8 [N, H, W, C], labels int32 [N], classes str [K]); unlabelled: zeros and K = 0."""
  import tensorflow_datasets
  builder = tensorflow_datasets.builder_from_directory(str(folder))
  image_key, label_key = _keys(builder.info.features, builder.info.name)
  channels = decode_options.get('channels') or builder.info.features[image_key].shape[-1] or 3
  decode = pictures.decoder(**{**decode_options, 'channels': channels})
  skip = {image_key: tensorflow_datasets.decode.SkipDecoding()}
  examples = builder.as_data_source(split=split, decoders=skip)
  records = []
  for start in range(0, len(examples), _CHUNK):
    # Seven times as fast as one by one.
    records += examples.__getitems__(list(range(start, min(start + _CHUNK, len(examples)))))
  names = [f'{builder.info.name} {split} {i}' for i in range(len(records))]
  images, _, _ = pictures.read_all(decode, names, lambda i: io.BytesIO(records[i][image_key]), 'stop')
  labels = np.array([record[label_key] if label_key else 0 for record in records], np.int32)
  classes = builder.info.features[label_key].names if label_key else []
  return dict(images=images, labels=labels, classes=np.array(classes, str))


def _keys(features, name):
  """The picture's key, and the class label's or None."""
  kinds = {key: type(feature).__name__ for key, feature in features.items()}
  image_keys = [key for key, kind in kinds.items() if kind == 'Image']
  label_keys = [key for key, kind in kinds.items() if kind == 'ClassLabel']
  if not image_keys:
    raise InputError(f'data set {name!r} holds no pictures, only {", ".join(kinds)}')
  best = lambda keys, usual: usual if usual in keys else (keys[0] if keys else None)
  return best(image_keys, 'image'), best(label_keys, 'label')
