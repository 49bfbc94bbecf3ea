"""The log is read back by other means than wrote it: the json module, TensorBoard's record format."""
import io
import json
import math
import resource
import struct
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from diffusion.errors import InputError
from diffusion.system import log


def events(workdir):
  """The events of the files in workdir/tensorboard: records of length, checksum, data, checksum."""
  from tensorboardX.proto.event_pb2 import Event
  found = []
  for path in sorted((workdir / 'tensorboard').iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      length, = struct.unpack_from('<Q', data, at)
      found.append(Event.FromString(data[at + 12:at + 12 + length]))
      at += 16 + length
  return found


def run(workdir, step, until):
  out = log.open_log(workdir, step)
  for k in range(step + 1, until + 1):
    out.scalars(k, {'loss': 1 / k, 'rate': np.float32(0.5)})
  out.close()


def test_each_step_is_one_json_line_and_one_point_in_tensorboard(tmp_path):
  run(tmp_path, 0, 3)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  got = [(line['step'], line['loss'], line['rate']) for line in lines]
  assert got == [(k, 1 / k, 0.5) for k in (1, 2, 3)]
  assert all(abs(line['time'] - lines[0]['time']) < 60 for line in lines)
  points = [(e.step, v.simple_value) for e in events(tmp_path) for v in e.summary.value if v.tag == 'loss']
  np.testing.assert_allclose(points, [(k, 1 / k) for k in (1, 2, 3)], rtol=1e-6)


def test_a_line_is_on_the_disk_before_the_log_is_closed(tmp_path):
  out = log.open_log(tmp_path, 0)
  out.scalars(1, {'loss': 2.0})
  assert log.read_metrics(tmp_path / 'metrics.jsonl')[0]['loss'] == 2.0
  out.close()


def test_a_resumed_run_drops_what_was_logged_after_its_step_and_writes_it_once_again(tmp_path):
  run(tmp_path, 0, 7)
  run(tmp_path, 4, 6)
  assert [line['step'] for line in log.read_metrics(tmp_path / 'metrics.jsonl')] == [1, 2, 3, 4, 5, 6]
  # The start of a session at step 5 tells TensorBoard to forget every step from 5 on.
  sessions = [event for event in events(tmp_path) if event.HasField('session_log')]
  starts = [event.step for event in sessions if event.session_log.status == event.session_log.START]
  assert starts == [1, 5]


def test_a_last_line_cut_short_by_a_kill_is_left_out_and_mended_on_resume(tmp_path):
  run(tmp_path, 0, 3)
  path = tmp_path / 'metrics.jsonl'
  whole = path.read_bytes()
  for cut in range(1, len(whole.splitlines()[-1]) + 1):
    path.write_bytes(whole[:-cut])
    assert [line['step'] for line in log.read_metrics(path)] == ([1, 2, 3] if cut == 1 else [1, 2])
  run(tmp_path, 3, 4)
  assert [json.loads(line)['step'] for line in path.read_text().splitlines()] == [1, 2, 4]


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
  with pytest.raises(InputError, match='line 2 .*nonsense'):
    log.read_metrics(path)


def test_nan_and_infinity_are_written_as_valid_json_and_read_back_as_numbers(tmp_path):
  out = log.open_log(tmp_path, 0)
  out.scalars(1, {'a': math.nan, 'b': np.float32(math.inf), 'c': -math.inf})
  out.close()

  def refuse(name):
    raise AssertionError(f'{name} is not JSON')

  json.loads((tmp_path / 'metrics.jsonl').read_text(), parse_constant=refuse)
  line, = log.read_metrics(tmp_path / 'metrics.jsonl')
  assert math.isnan(line['a']) and line['b'] == math.inf and line['c'] == -math.inf


def test_images_and_text_reach_tensorboard_unchanged(tmp_path):
  images = [np.random.default_rng(c).integers(0, 256, (6, 5, c), np.uint8) for c in (1, 3, 4)]
  out = log.open_log(tmp_path, 0)
  for image in images:
    out.image(2, f'c{image.shape[-1]}', image)
  out.image(2, 'pil', Image.fromarray(images[1]))
  out.text('config', 'batch = 64')
  out.close()
  values = [value for event in events(tmp_path) for value in event.summary.value]
  coded = {value.tag: value.image.encoded_image_string for value in values if value.image.height}
  shown = {tag: Image.open(io.BytesIO(data)) for tag, data in coded.items()}
  for image in images:
    seen = np.asarray(shown[f'c{image.shape[-1]}'])
    np.testing.assert_array_equal(seen, np.broadcast_to(image, seen.shape))
  np.testing.assert_array_equal(np.asarray(shown['pil']), images[1])
  assert any(b'batch = 64' in value.tensor.string_val for value in values if value.tag.startswith('config'))


def test_a_full_disk_while_logging_is_one_line_that_names_the_file(tmp_path):
  out = log.open_log(tmp_path, 0)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
  try:
    with pytest.raises(InputError, match='cannot write .*metrics.jsonl') as error:
      for step in range(100):
        out.scalars(step, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert '\n' not in str(error.value)


def test_images_that_are_not_uint8_are_refused(tmp_path):
  out = log.open_log(tmp_path, 0)
  with pytest.raises(InputError, match='float64'):
    out.image(1, 'x', np.zeros((4, 4, 3)))
  out.close()


def test_logging_imports_neither_tensorflow_nor_torch():
  code = ('import sys, tempfile; from diffusion.system import log; log.open_log(tempfile.mkdtemp(), 0).close(); '
          'sys.exit("tensorflow" in sys.modules or "torch" in sys.modules)')
  subprocess.run([sys.executable, '-c', code], check=True)


def test_without_a_terminal_progress_is_whole_lines_and_only_as_many_as_asked():
  stream = io.StringIO()
  shown = log.progress(total=100, initial=40, batch=8, every=1000, stream=stream)
  for step in range(41, 101):
    shown.update(step, loss=0.25 if step == 50 else None)
  shown.close()
  line, = stream.getvalue().splitlines()
  assert line.startswith('step 100/100, ') and 'images/s, loss 0.25, 0:00 left' in line and '\r' not in line


def test_progress_counts_images_per_second_and_the_time_left(monkeypatch):
  clock = iter([0.0, 10.0, 30.0])
  monkeypatch.setattr(log.time, 'monotonic', lambda: next(clock))
  stream = io.StringIO()
  shown = log.progress(total=1000, initial=100, batch=64, every=5, stream=stream)
  shown.update(150, loss=1.0)   # 50 steps in 10 s: 320 images/s, 850 steps take 170 s
  shown.update(350)             # 200 steps in 20 s: 640 images/s, 650 steps take 65 s
  assert stream.getvalue().splitlines() == ['step 150/1000, 320 images/s, loss 1, 2:50 left',
                                            'step 350/1000, 640 images/s, loss 1, 1:05 left']


def test_on_a_terminal_progress_is_one_bar_that_is_redrawn():
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  shown = log.progress(total=10, initial=4, batch=8, stream=stream)
  for step in range(5, 11):
    shown.update(step, loss=0.5)
  shown.close()
  assert stream.getvalue().count('\n') == 1 and '4/10' in stream.getvalue()
  assert '10/10' in stream.getvalue().split('\r')[-1] and 'loss 0.5' in stream.getvalue().split('\r')[-1]
