"""Prefetched batches: their contents on any number of hosts and workers, and that nothing hangs or is left behind."""
import dataclasses
import threading
import time
from functools import partial

import numpy as np
import psutil
import pytest
from PIL import Image

from diffusion.data import sources
from diffusion.data.arrays import image_dataset, images_batch
from diffusion.data.dataset import batch_indices, condition_vectors, read_batch
from diffusion.data.prefetch import feed
from diffusion.data.ragged import ragged
from diffusion.data.stream import open_stream
from diffusion.errors import InputError

SEED, BATCH = 5, 12


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """30 images of three classes, each of one value."""
  root = tmp_path_factory.mktemp('images')
  for i in range(30):
    path = root / f'{"abc"[i % 3]}/{i:02}.png'
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((6, 5, 3), i, np.uint8)).save(path)
  return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path_factory.mktemp('cache')))


def reading(data, rows=range(BATCH)):
  return partial(read_batch, images_batch, data, BATCH, SEED, np.array(rows))


def read(data, start, stop, rows=range(BATCH), put=lambda batch: batch, **options):
  """All batches of a feed, which is closed."""
  source = feed(reading(data, rows), start, stop, put, **options)
  try:
    return [source.next() for _ in range(start, stop)]
  finally:
    source.close()


def expected(data, step):
  """The batch by its definition, from the arrays in memory."""
  index = batch_indices(len(data.arrays['images']), BATCH, SEED, step)
  cond = condition_vectors(data.arrays['labels'][index], data.facts['classes'])
  return dict(images=data.arrays['images'][index], cond=cond)


def slow(seconds, count=24):
  """A streamed Dataset, each image of which takes so many seconds to read."""
  def decode(i):
    time.sleep(seconds)
    return fast(i)
  fast = lambda i: np.full((2, 2, 1), i, np.uint8)
  images = open_stream(lambda numbers: [(str(i), i) for i in numbers], fast, count, 'slow')
  return image_dataset(dataclasses.replace(images, decode=decode, threads=1), np.zeros(count, np.int32))


def left():
  """What this process has open: (threads, file descriptors, child processes)."""
  me = psutil.Process()
  return threading.active_count(), me.num_fds(), len(workers())


def settled(before):
  """left(), once it is as before, or after 10 s: a thread releases shared memory."""
  until = time.monotonic() + 10
  while left() != before and time.monotonic() < until:
    time.sleep(.1)
  return left()


def workers():
  """Child processes except Python's own tracker and the command server of other tests (tests/forks.py)."""
  others = 'resource_tracker', 'tests.forks'
  is_other = lambda child: any(name in ' '.join(child.cmdline()) for name in others)
  return [child for child in psutil.Process().children() if not is_other(child)]


def equal(batch, wanted):
  return batch.keys() == wanted.keys() and all(np.array_equal(batch[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize('hosts', [1, 2, 4])
@pytest.mark.parametrize('start', [0, 7])
def test_hosts_together_read_the_batches_of_one_in_memory(folder, hosts, start):
  memory, stream = (sources.folder(str(folder), heldout=0, stream=flag).train for flag in (False, True))
  for data in (memory, stream):
    shares = [read(data, start, start + 5, rows) for rows in np.split(np.arange(BATCH), hosts)]
    for i, parts in enumerate(zip(*shares)):
      whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
      assert equal(whole, expected(memory, start + i))


def test_rows_come_in_the_order_asked_for(folder):
  data = sources.folder(str(folder), heldout=0, stream=True).train
  rows = [9, 2, 3]
  assert np.array_equal(read(data, 4, 5, rows)[0]['images'], read(data, 4, 5)[0]['images'][rows])


def test_each_image_comes_once_an_epoch(folder):
  data = sources.folder(str(folder), heldout=0, stream=True).train
  order = np.concatenate([batch['images'][:, 0, 0, 0] for batch in read(data, 0, 10)])  # 120 of 30 images
  for epoch in order.reshape(4, 30):
    assert sorted(epoch) == list(range(30))


def test_batches_are_put_ahead_in_another_thread_and_not_too_far(folder):
  data = sources.folder(str(folder), heldout=0).train
  here, done = threading.get_ident(), []
  def put(batch):
    assert threading.get_ident() != here
    done.append(batch)
    return len(done)
  source = feed(reading(data), 0, 9, put, depth=3)
  for taken in range(7):
    until = time.monotonic() + 10
    while len(done) < min(taken + 3, 9) and time.monotonic() < until:  # a step: meanwhile the next ones are put
      time.sleep(.01)
    time.sleep(.02)
    assert len(done) == min(taken + 3, 9)
    assert source.next() == taken + 1
  assert [source.next(), source.next()] == [8, 9]
  for _ in range(2):
    with pytest.raises(StopIteration):
      source.next()
  source.close()
  assert len(done) == 9


def test_waiting_is_measured_and_only_waiting():
  data = slow(.01)  # .12 s a batch
  source = feed(reading(data), 0, 8, lambda batch: batch)
  begun = time.perf_counter()
  for _ in range(3):
    source.next()
  spent = time.perf_counter() - begun
  waited = source.waited()
  assert .9 * spent - .01 < waited <= spent  # all that time: there was nothing else to do
  assert source.waited() == 0
  time.sleep(1)  # steps of the network: two batches are read meanwhile
  source.next(), source.next()
  assert source.waited() < .05
  source.close()


def test_a_run_that_is_complete_and_impossible_settings(folder):
  for stream in (False, True):
    data = sources.folder(str(folder), heldout=0, stream=stream).train
    source = feed(reading(data), 4, 4, None)
    with pytest.raises(StopIteration):
      source.next()
    source.close()
  for options in (dict(workers=-1), dict(depth=0)):
    with pytest.raises(InputError, match=list(options)[0]):
      feed(reading(slow(0)), 0, 1, None, **options)


def test_closing_leaves_nothing_behind(folder):
  data = sources.folder(str(folder), heldout=0, stream=True).train
  read(data, 0, 1)  # grain's imports are kept for good
  before = left()
  for taken in (0, 1, 4):
    source = feed(reading(data), 0, 10 ** 9, lambda batch: batch)
    for _ in range(taken):
      source.next()
    source.close()
    source.close()
    assert left() == before
  for _ in range(4):  # what was ready may still be taken, then it ends and does not hang
    try:
      source.next()
    except StopIteration:
      break
  else:
    raise AssertionError('a closed feed goes on')


def test_errors_while_reading_come_out_of_next(folder, tmp_path):
  for i in range(24):
    Image.fromarray(np.full((3, 3, 3), i, np.uint8)).save(tmp_path / f'{i:02}.png')
  data = sources.folder(str(tmp_path), heldout=0, stream=True, unreadable='stop').train
  before = left()
  gone = batch_indices(24, BATCH, SEED, 1)[3]  # in the second batch
  (tmp_path / f'{gone:02}.png').unlink()
  source = feed(reading(data), 0, 9, lambda batch: batch)
  assert len(source.next()['images']) == BATCH
  for _ in range(2):
    with pytest.raises(InputError, match=f'{gone:02}.png cannot be opened'):
      source.next()
  source.close()
  (tmp_path / f'{gone:02}.png').write_bytes(b'damaged')
  with pytest.raises(InputError, match=f'cannot read {gone:02}.png'):
    read(data, 0, 2)

  def full(batch):
    raise MemoryError('no room on the device')
  with pytest.raises(MemoryError, match='no room on the device'):
    read(data, 0, 1, put=full)
  assert left() == before


def columns_batch(data, indices):
  """Of images on disk, a ragged column and texts; not of attributes, which could not be sent."""
  values, mask = data.arrays['atoms'][indices].padded(5)
  return dict(images=data.arrays['images'][indices], values=values, mask=mask,
              length=np.strings.str_len(data.arrays['captions'][indices]))


def test_workers_pass_columns_of_several_kinds_through_and_need_no_others(folder):
  data = sources.folder(str(folder), heldout=0, stream=True).train
  number = data.arrays['images'][:][:, 0, 0, 0]  # each image is of one value
  more = dict(atoms=ragged([np.full((n % 5, 2), n, np.float32) for n in number]),
              captions=np.array(['x' * n for n in number], np.dtypes.StringDType()),
              attributes=np.array([threading.Lock() for _ in number], object))
  data = data._replace(arrays=data.arrays | more)
  source = feed(partial(read_batch, columns_batch, data, BATCH, SEED, np.arange(BATCH)), 0, 3, lambda x: x, workers=1)
  for step in range(3):
    batch, wanted = source.next(), number[batch_indices(30, BATCH, SEED, step)]
    assert np.array_equal(batch['images'][:, 0, 0, 0], wanted) and np.array_equal(batch['length'], wanted)
    assert np.array_equal(batch['mask'].sum(1), wanted % 5)
    assert np.array_equal(batch['values'][..., 1], np.where(batch['mask'], wanted[:, None], 0))
  source.close()


def test_worker_processes_read_the_same_and_leave_nothing(folder):
  data = sources.folder(str(folder), heldout=0, stream=True).train
  single = read(data, 3, 10, rows=[1, 5, 6, 0])
  several = read(data, 3, 10, rows=[1, 5, 6, 0], workers=2)
  assert len(single) == 7 and all(map(equal, several, single))
  assert not workers()
  before = left()

  source = feed(reading(data), 2, 10 ** 6, lambda batch: batch, workers=2)
  memory = sources.folder(str(folder), heldout=0).train
  assert all(equal(source.next(), expected(memory, step)) for step in range(2, 6))
  both = workers()
  assert len(both) == 2
  for child in both:
    child.terminate()  # SIGTERM to the group, by which a run is asked to save: its workers read on
  for _ in range(20):
    source.next()
  both[0].kill()
  with pytest.raises(InputError, match='died.*config.data_workers'):
    for _ in range(20):
      source.next()
  source.close()
  assert settled(before) == before

  broken = image_dataset(dataclasses.replace(data.arrays['images'], decode=lambda file: 1 / 0, groups=None))
  with pytest.raises(InputError, match='cannot read .*ZeroDivisionError') as kept:
    read(broken, 0, 1, workers=1)
  assert settled(before) == before and kept.value  # although the error is still at hand
