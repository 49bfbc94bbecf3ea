"""What a stranger found: orientation, depth, links and names that were read wrongly or stopped everything."""
import os

import numpy as np
from PIL import Image
import pytest

from diffusion.data import decode_images, series, sources
from diffusion.data.arrays import as_images
from diffusion.data.dataset import fingerprint
from diffusion.errors import InputError
from diffusion.setup import specs
from diffusion.setup.choices import make
from diffusion.tasks import image
from tests.data.test_folder import noise, write
from tests.data.test_folder_faults import images_of, read


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path_factory.mktemp('cache')))


@pytest.mark.parametrize('ending', ['tif', 'png', 'jpg', 'webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_every_orientation_in_every_format_is_turned_once(tmp_path, ending, orientation):
  upright = np.zeros((16, 24, 3), np.uint8)
  upright[:8, :8] = 255  # the top left
  turns = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_270}  # how the camera was held, which undoes what the tag says
  stored = Image.fromarray(upright)
  stored = stored.transpose(turns[orientation]) if orientation in turns else stored
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored.save(tmp_path / f'a.{ending}', exif=exif, **(dict(quality=95) if ending in ('jpg', 'webp') else {}))
  got = decode_images.decoder()(tmp_path / f'a.{ending}')
  assert got.shape == upright.shape and np.abs(got.astype(int) - upright)[:4, :4].max() < 30
  assert got[12:, 16:].max() < 30 and got[:4, 16:].max() < 30


def test_a_range_that_is_given_clips_and_does_not_wrap():
  values = np.array([0, 256.5, 258, 254.9, 100]).reshape(5, 1, 1, 1)
  assert as_images(values, 'x', (0, 255)).ravel().tolist() == [0, 255, 255, 255, 100]
  assert as_images(np.array([-3, 259, 7]).reshape(3, 1, 1, 1), 'x', (0, 255)).ravel().tolist() == [0, 255, 7]


def test_bool_arrays_are_black_and_white():
  array = np.arange(8).reshape(2, 2, 2, 1) % 3 == 0
  assert np.array_equal(as_images(array, 'x'), array * 255)


def test_inverted_and_transparent_grey_of_16_bits(tmp_path):
  values = np.array([[0, 65535], [30000, 1000]], np.uint16)
  Image.fromarray(values).save(tmp_path / 'a.tif', tiffinfo={262: 0})
  assert decode_images.decoder(channels=1)(tmp_path / 'a.tif')[..., 0].tolist() == [[255, 0], [138, 251]]
  Image.fromarray(values).save(tmp_path / 'b.png', transparency=1000)
  assert decode_images.decoder(channels=1)(tmp_path / 'b.png')[..., 0].tolist() == [[0, 255], [117, 255]]


def test_links_to_themselves_to_fifos_and_to_each_other(tmp_path):
  names = [f'c{i}' for i in range(7)]
  images_of(tmp_path, *(f'{name}/0.png' for name in names))
  for name in names:
    for other in set(names) - {name}:
      (tmp_path / name / other).symlink_to(tmp_path / other)
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  (tmp_path / 'c0/l.png').symlink_to('l.png')
  os.mkfifo(tmp_path / 'c0/pipe')
  (tmp_path / 'c0/f.png').symlink_to(tmp_path / 'c0/pipe')
  source = read(tmp_path)
  assert len(source.train.arrays['images']) == 49  # each of seven classes sees each of seven folders once
  notes = '\n'.join(source.notes)
  assert 'broken links and devices skipped' in notes and 'unreadable images skipped' in notes


def test_a_damaged_page_after_the_first_does_not_stop_a_folder(tmp_path):
  pages = [Image.fromarray(noise(1, seed=i)[0]) for i in range(2)]
  pages[0].save(tmp_path / 'a.tif', save_all=True, append_images=pages[1:])
  data = (tmp_path / 'a.tif').read_bytes()
  (tmp_path / 'a.tif').write_bytes(data[:len(data) - 150])
  images_of(tmp_path, 'b.png')
  assert any(np.array_equal(got, noise(1)[0]) for got in read(tmp_path).train.arrays['images'])


def test_a_held_out_folder_with_the_classes_inside_beside_them_is_refused(tmp_path):
  images_of(tmp_path, 'a/0.png', 'b/1.png', 'test/a/2.png', 'test/b/3.png')
  with pytest.raises(InputError, match='sub-folders test beside a, b'):
    read(tmp_path)
  images_of(tmp_path / 'other', 'training_set/0.png', 'test_set/1.png')
  assert len(read(tmp_path / 'other').heldout.arrays['images']) == 1


def test_metadata_covers_its_own_folder_alone(tmp_path):
  images_of(tmp_path, 'train/a/0.png', 'test/a/1.png', 'test/a/2.png')
  (tmp_path / 'test/metadata.jsonl').write_text('{"file_name": "a/1.png", "text": "one"}')
  source = read(tmp_path)
  assert len(source.train.arrays['images']) == 1 and list(source.heldout.arrays['captions']) == ['one']
  (tmp_path / 'test/metadata.jsonl').write_text('{"file_name": "a/1.png", "text": "one", "text": "two"}')
  with pytest.raises(InputError, match='line 1'):
    read(tmp_path)


def test_a_stream_is_told_from_others_by_the_contents_of_files_of_one_size(tmp_path):
  for i in range(80):
    write(tmp_path / f'{i:02d}.bmp', noise(1, seed=i)[0])
  before = fingerprint(read(tmp_path, stream=True, size=6))
  write(tmp_path / '75.bmp', noise(1, seed=99)[0])
  assert fingerprint(read(tmp_path, stream=True, size=6)) != before


def test_dark_folders_are_said_and_a_small_set_of_sprites_draws_what_it_has(tmp_path):
  write(tmp_path / 'a.png', np.ones((4, 4), np.uint8))
  assert any('nearly black' in note for note in read(tmp_path).notes)
  source = sources.sprites(n=5, heldout=0)
  assert source.train.facts['untrained'] and not set(source.train.facts['untrained']) & set(
    image.image(data=source.train).ask({}, np.arange(12), 0).labels)


def test_names_in_two_unicode_forms_are_one_class_of_an_array(tmp_path):
  np.save(tmp_path / 'x.npy', noise(4))
  np.save(tmp_path / 'y.npy', np.array(['caf\u00e9', 'cafe\u0301', 'b', 'b']))
  source = sources.npy(str(tmp_path / 'x.npy'), str(tmp_path / 'y.npy'), heldout=0)
  assert source.train.facts['classes'] == ('b', 'caf\u00e9') and source.train.arrays['labels'].tolist() == [1, 1, 0, 0]
  with pytest.raises(InputError, match='without labels'):
    sources.npy(str(tmp_path / 'x.npy'), classes=('a', 'b'))


def test_series_far_from_zero_are_refused_and_not_rounded(tmp_path):
  wave = np.sin(np.arange(40 * 32).reshape(40, 32))
  np.save(tmp_path / 'a.npy', 1e7 + wave)
  with pytest.raises(InputError, match='32-bit floats; subtract'):
    series.series(str(tmp_path / 'a.npy'))
  np.save(tmp_path / 'a.npy', 100 + wave)
  assert series.series(str(tmp_path / 'a.npy'), heldout=4).train.arrays['series'].std() > .7


@pytest.mark.parametrize('spec, message', [
  ('folder({}, labelled=no)', 'expected True or False'), ('folder({}, channels=3.0)', 'channels=3.0 is unknown'),
  ('folder({}, background=None)', 'is not a colour'), ('points([1])', 'expected one of moons')])
def test_arguments_of_the_wrong_kind_are_refused_in_our_words(tmp_path, spec, message):
  images_of(tmp_path, 'a/0.png')
  with pytest.raises(InputError, match=message):
    make('data', spec.format(tmp_path))


def test_booleans_may_be_written_small(tmp_path):
  assert specs.parse('f(a=false, b=True)') == ('f', [], dict(a=False, b=True))
  images_of(tmp_path, 'a/0.png')
  assert 'classes' not in make('data', f'folder({tmp_path}, labelled=false, heldout=0)').train.facts
