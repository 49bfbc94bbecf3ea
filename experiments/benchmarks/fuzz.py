r"""Generated images, arrays, captions, labels, specs and settings: each is read right or refused in one line.

  python -m experiments.benchmarks.fuzz                     10,000 cases
  python -m experiments.benchmarks.fuzz --cases=500 --only=captions

Each kind is a strategy of hypothesis and a judge, which compares what was read with what was written, by code of its
own. Anything but an agreement or an InputError of one line that names the value is a fault; hypothesis then shows the
smallest case it finds. Needs the extra [test].
"""
import argparse
import collections
import contextlib
import json
import os
import pathlib
import tempfile
import time
import unicodedata
from typing import Callable, NamedTuple

from hypothesis import given, HealthCheck, seed, settings, strategies as st
import numpy as np
from PIL import Image

from diffusion import main as main_program
from diffusion.data import sources
from diffusion.data.dataset import size
from diffusion.errors import InputError, shown
from diffusion.generation import requests
from diffusion.setup import specs, validate
from diffusion.setup.config import default, put
from diffusion.tasks.classes import parse_mix, quoted, split_names

TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=12)
NAME = st.text(st.characters(exclude_characters='/\0', exclude_categories=['Cs']), min_size=1, max_size=8)


class Case(NamedTuple):
  """A kind of input."""
  strategy: object  # of what is written
  judge: Callable   # (value, folder) -> 'read' or 'refused'; AssertionError or any other exception: a fault


def refusal(read, *words):
  """(what `read` returned, None), or (None, the message of its InputError, which is one line with one of the words)."""
  try:
    return read(), None
  except InputError as error:
    text = str(error)
    assert '\n' not in text and any(word in text for word in words), f'{text!r} does not name {words}'
    return None, text


# ---- arrays
CONVENTIONS = {'uint8': (0, 255), 'unit': (0, 1), 'signed': (-1, 1)}


@st.composite
def arrays(draw):
  image = st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7), st.integers(1, 4))
  shape = draw(st.one_of(image, image, st.lists(st.integers(1, 7), min_size=2, max_size=5)))
  base = np.random.default_rng(draw(st.integers(0, 9))).integers(0, draw(st.sampled_from([1, 2, 30, 256])), shape)
  low, high = draw(st.sampled_from([*CONVENTIONS.values(), (0, 255), (0, 1), (0, 65535), (-.5, .5), (.3, .9), (-3, 2)]))
  values = base / 255 * (high - low) + low
  dtype = draw(st.sampled_from(['uint8', 'int16', 'int64', 'uint16', 'float16', 'float32', 'float64', 'bool']))
  broken = draw(st.sampled_from([None] * 6 + [np.nan, np.inf, -1e9]))
  array = np.clip(values, *(np.iinfo(dtype).min, np.iinfo(dtype).max)).astype(dtype) if 'int' in dtype else \
    values.astype(dtype)
  if broken is not None and 'float' in dtype:
    array[(0,) * array.ndim] = broken
  return array, draw(st.sampled_from([None, None, (low, high)]))


def judge_array(case, folder):
  array, values = case
  np.save(folder / 'x.npy', array)
  source, message = refusal(lambda: sources.npy(str(folder / 'x.npy'), values=values, heldout=0), 'x.npy')
  if message:
    return 'refused'
  got = source.train.arrays['images'].astype(float).reshape(array.shape)
  ranges = [values] if values else CONVENTIONS.values()
  fits = [np.abs(np.clip((array.astype(float) - low) / (high - low) * 255, 0, 255) - got).max() < .51
          for low, high in ranges]
  assert any(fits), f'{array.dtype} from {array.min()} to {array.max()} became {got.min()} to {got.max()}'
  assert array.ndim == 4 or array.shape[-1] > 4, 'it may be one image'
  assert np.isfinite(array.astype(float)).all()
  return 'read'


# ---- labels
LABELS = st.one_of(st.lists(st.integers(-2, 12), min_size=4, max_size=9), st.lists(NAME, min_size=4, max_size=9),
                   st.lists(st.sampled_from([0., 1., 2., 1.5, np.nan, 1e300]), min_size=4, max_size=9),
                   st.lists(st.integers(-2 ** 62, 2 ** 62), min_size=4, max_size=9),
                   st.lists(st.booleans(), min_size=4, max_size=9))


def judge_labels(labels, folder):
  array = np.array(labels)
  np.save(folder / 'x.npy', np.random.default_rng(0).integers(0, 256, (len(labels), 4, 5, 3), np.uint8))
  np.save(folder / 'y.npy', array)
  source, message = refusal(lambda: sources.npy(str(folder / 'x.npy'), str(folder / 'y.npy'), heldout=0), 'y.npy')
  if message:
    return 'refused'
  classes, got = source.train.facts['classes'], source.train.arrays['labels']
  expected = array.tolist() if array.dtype.kind == 'U' else [str(int(label)) for label in array]
  assert [classes[k] for k in got] == expected
  absent = set(classes) - set(expected)
  assert absent == set(source.train.facts.get('untrained', ())) and bool(absent) == any(
    'no examples' in note for note in source.notes)
  return 'read'


# ---- folders of images
MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'I', 'F')
FORMATS = ('png', 'bmp', 'gif', 'tif', 'webp', 'jpg', 'ico', 'txt', 'csv')
FILES = st.lists(st.tuples(st.lists(NAME, max_size=2), NAME, st.sampled_from(FORMATS), st.sampled_from(MODES),
                           st.sampled_from(['whole'] * 5 + ['cut', 'junk', 'empty'])), min_size=1, max_size=6)


def judge_folder(files, folder):
  """Every file is an image of the source or counted in one of its notes; a whole RGB PNG is read pixel for pixel."""
  root, written = folder / 'd', {}
  for number, (parents, stem, ending, mode, state) in enumerate(files):
    path = root.joinpath(*parents) / f'{stem}.{ending}'
    with contextlib.suppress(OSError):  # too long, or a folder where a file is
      if not path.exists() and path.resolve().is_relative_to(root.resolve()):
        path.parent.mkdir(parents=True, exist_ok=True)
        written[path] = _save(path, mode, state, number)
  source, message = refusal(lambda: sources.folder(str(root), heldout=0, labelled=False), str(root), 'images differ',
                            'none of')
  if message:
    return 'refused'
  whole = {path for path, image in written.items() if image is not None and path.suffix == '.png'}
  images = {image.tobytes() for image in source.train.arrays['images']}
  hidden = {path for path in written if any(part.startswith(('.', '__')) for part in path.relative_to(root).parts)}
  for path in whole - hidden:
    assert written[path].tobytes() in images, f'{path} was not read as it is'
  counted = sum(int(note.split()[0]) for note in source.notes if ' skipped' in note or 'belong to no' in note)
  texts = {path for path in written if path.suffix == '.txt'}
  known = size(source.train) + counted
  assert len(set(written) - hidden - texts) <= known <= len(written) + len(list(root.rglob('*'))), source.notes
  return 'read'


def _save(path, mode, state, number):
  """Writes a file; its pixels, if it is a whole RGB PNG."""
  pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 3), np.uint8)
  if path.suffix in ('.txt', '.csv') or state in ('junk', 'empty'):
    path.write_bytes(b'' if state == 'empty' else b'words')
    return None
  image = Image.fromarray(pixels)
  try:
    image = image.convert('L').convert(mode) if mode in ('I', 'F', 'I;16') else image.convert(mode)
    image.save(path)
  except (ValueError, OSError, KeyError):  # a mode that this format does not have
    path.write_bytes(b'words')
    return None
  if state == 'cut':
    path.write_bytes(path.read_bytes()[:40])
    return None
  return pixels if mode == 'RGB' and path.suffix == '.png' else None


# ---- captions
CAPTIONS = st.tuples(st.lists(TEXT, min_size=1, max_size=4),
                     st.sampled_from(['utf-8', 'utf-8-sig', 'utf-16', 'utf-32']),
                     st.sampled_from(['\n', '\r\n', '\n\n']), st.booleans(), st.none() | st.integers(0, 400))


def judge_captions(case, folder):
  texts, encoding, ending, escaped, flip = case
  for i in range(len(texts)):
    Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(folder / f'{i}.png')
  lines = [json.dumps(dict(file_name=f'{i}.png', text=text), ensure_ascii=escaped) for i, text in enumerate(texts)]
  data = bytearray(ending.join(lines).encode(encoding))
  if flip is not None:
    data[flip % len(data)] ^= 0x55
  (folder / 'metadata.jsonl').write_bytes(data)
  source, message = refusal(lambda: sources.folder(str(folder), heldout=0), 'metadata.jsonl')
  if message:
    assert flip is not None, f'{texts} were refused: {message}'
    return 'refused'
  if flip is None:
    got = source.train.arrays.get('captions', [''] * len(texts))
    assert list(got) == texts
  return 'read'


# ---- specs, names, settings
LITERAL = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT, st.booleans(), st.none(),
                    st.lists(st.integers(), max_size=3))
SPECS = st.one_of(
  st.tuples(st.sampled_from(['ddim', 'folder']), st.lists(LITERAL, max_size=2),
            st.dictionaries(st.sampled_from(['size', 'eta', 'x_1']), LITERAL, max_size=2)),
  st.text(st.sampled_from('ab(),=\'"[]{} |:/~.\\-5é\n'), max_size=24))


def judge_spec(case, folder):
  if isinstance(case, str):
    _, message = refusal(lambda: specs.parse(case), repr(case))
    return 'refused' if message else 'read'
  name, args, kwargs = case
  parts = [repr(a) for a in args] + [f'{key}={value!r}' for key, value in kwargs.items()]
  assert specs.parse(f'{name}({", ".join(parts)})') == (name, args, kwargs)
  return 'read'


def writable_name(name):
  """Names of classes that quotes can hold: not with both kinds of them."""
  return name == name.strip() and not ("'" in name and '"' in name) and '\n' not in name


NAMES = st.lists(NAME.filter(writable_name), min_size=1, max_size=4,
                 unique_by=lambda name: unicodedata.normalize('NFC', name))


def judge_names(names, folder):
  assert split_names(', '.join(map(quoted, names))) == names
  mix = parse_mix(names, ' + '.join(f'{i + .5} * {quoted(name)}' for i, name in enumerate(names)))
  assert mix == [(i + .5, name) for i, name in enumerate(names)]
  asked = requests.parse(' | '.join(f'take_{i}: {quoted(name)}' for i, name in enumerate(names)), ())
  assert [split_names(text)[0] for text in asked.values()] == names
  return 'read'


FIELDS = [key for key, value in default().items() if isinstance(value, (str, int, float))]
VALUES = st.one_of(TEXT, st.integers(-3, 5), st.sampled_from([
  '-1', '1e999', 'nan', '2**40', 'None', '()', 'ddim(', 'x()', 'trailing(5)', 'cosine', 'linear(T=-4)', 'ddim(eta=[])',
  'karras(3, rho=nan)', 'cfg(1) | cfg(2)', 'flow', 'v', 'edm', 'sigmas([1, 2])', 'times({})', 'power(.1) | power(.1)']))


def judge_setting(case, folder):
  field, value = case
  config = default()
  def read():
    put(config, field, value)
    validate.check(config)
  _, message = refusal(read, field, str(value), repr(value))
  return 'refused' if message else 'read'


WORDS = st.lists(st.one_of(TEXT, st.sampled_from(['--config', '--workdir', '--mode=sample', '-h', 'cosine_ddim:tiny']),
                           st.builds('--config={}'.format, st.one_of(TEXT, st.sampled_from(['vdm', 'configs/vdm.py']))),
                           st.builds('--workdir={}'.format, TEXT), st.builds('--processes={}'.format, TEXT)),
                 max_size=5)


def judge_command(words, folder):
  """Recipes become files that exist, and nothing else in the command line changes."""
  argv = ['main.py', *words]
  text = main_program.argument(argv, 'config')
  found, message = refusal(lambda: main_program.with_recipe(argv), f'--config={shown((text or "").partition(":")[0])}')
  if message:
    return 'refused'
  assert len(found) == len(argv) and all(new == old or old.endswith(text) for new, old in zip(found, argv))
  if text is not None:
    assert pathlib.Path(main_program.argument(found, 'config').partition(':')[0]).is_file()
    assert main_program.default_workdir(found).startswith('runs/')
  return 'read'


CASES = dict(arrays=Case(arrays(), judge_array), labels=Case(LABELS, judge_labels), folder=Case(FILES, judge_folder),
             captions=Case(CAPTIONS, judge_captions), specs=Case(SPECS, judge_spec), names=Case(NAMES, judge_names),
             settings=Case(st.tuples(st.sampled_from(FIELDS), VALUES), judge_setting),
             command=Case(WORDS, judge_command))


def run(name, number, start=0):
  """Tries `number` cases of a kind: a Counter of 'read' and 'refused'. Raises what the smallest faulty case raises."""
  counts = collections.Counter()
  case = CASES[name]

  @seed(start)
  @settings(max_examples=number, deadline=None, database=None, suppress_health_check=list(HealthCheck))
  @given(case.strategy)
  def each(value):
    with tempfile.TemporaryDirectory() as folder:
      counts[case.judge(value, pathlib.Path(folder))] += 1
  each()
  return counts


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--cases', type=int, default=10_000, help='of all kinds together (default: %(default)s)')
  parser.add_argument('--only', choices=CASES, help='a single kind')
  parser.add_argument('--seed', type=int, default=0)
  options = parser.parse_args()
  names = [options.only] if options.only else list(CASES)
  with tempfile.TemporaryDirectory() as cache:
    os.environ['DIFFUSION_CACHE'] = cache
    for name in names:
      began = time.monotonic()
      counts = run(name, options.cases // len(names), options.seed)
      print(f'{name:<10} {counts.total():6} cases, {counts["read"]} read, {counts["refused"]} refused, '
            f'{time.monotonic() - began:.0f} s', flush=True)


if __name__ == '__main__':
  main()
