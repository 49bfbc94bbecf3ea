"""Folders of images: classes, captions, formats, scaling, and and an error for every invalid input."""
import json

import numpy as np
import pytest
from PIL import Image

from diffusion.data import sources
from diffusion.errors import InputError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path_factory.mktemp('cache')))


def noise(count, height=6, width=6, channels=3, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def as_set(images):
  return {image.tobytes() for image in images}


def write(path, array, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path, **options)


def test_sub_folders_are_classes_in_sorted_order_and_other_files_are_left_out(tmp_path):
  images = noise(4)
  for name, image in zip(('dog/b.png', 'cat/deep/z.png', 'cat/a.PNG', 'dog/a.bmp'), images):
    write(tmp_path / name, image)
  write(tmp_path / 'cat/.hidden.png', images[0])
  write(tmp_path / '.thumbs/x.png', images[0])
  (tmp_path / 'cat/sound.mp3').write_bytes(b'x')
  source = sources.folder(str(tmp_path), heldout=0)
  assert np.array_equal(source.train.arrays['images'], images[[2, 1, 3, 0]])
  assert source.train.facts['classes'] == ('cat', 'dog')
  assert source.train.arrays['labels'].tolist() == [0, 0, 1, 1]
  assert source.notes == ('2 hidden files and folders skipped: .thumbs, cat/.hidden.png',
                          '1 files of other types skipped: 1 .mp3',
                          '1 deeper sub-folders are no classes of their own: cat/deep')
  flat = sources.folder(str(tmp_path), labelled=False, heldout=0).train
  assert flat.facts.get('classes', ()) == () and np.array_equal(flat.arrays['images'], source.train.arrays['images'])


def test_a_flat_folder_is_unlabelled_and_text_files_are_captions(tmp_path):
  for name, image in zip('ab', noise(2)):
    write(tmp_path / f'{name}.png', image)
  (tmp_path / 'a.txt').write_text(' a red thing\n')
  source = sources.folder(str(tmp_path), heldout=0)
  assert source.train.facts.get('classes', ()) == () and tuple(source.train.arrays['captions']) == ('a red thing', '')
  assert source.notes == ('1 of 2 images have no caption',)


def test_metadata_gives_captions_and_attributes(tmp_path):
  for name, image in zip('abc', noise(3)):
    write(tmp_path / f'{name}.png', image)
  lines = [dict(file_name='c.png', text='third', size=3), dict(file_name='a.png', text='first', size=1)]
  (tmp_path / 'metadata.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n\n')
  source = sources.folder(str(tmp_path), heldout=0)
  assert tuple(source.train.arrays['captions']) == ('first', 'third')
  assert tuple(source.train.arrays['attributes']) == ({'size': 1}, {'size': 3})
  assert source.notes == ('1 images skipped that metadata.jsonl does not list',)
  (tmp_path / 'metadata.jsonl').write_text('{"file_name": "z.png", "text": ""}')
  with pytest.raises(InputError, match='metadata.jsonl: z.png '):
    sources.folder(str(tmp_path))
  (tmp_path / 'metadata.jsonl').write_text('{"file_name": "a.png"}\n{"name": 1}')
  with pytest.raises(InputError, match='line 2'):
    sources.folder(str(tmp_path))


def test_train_and_test_folders_are_the_two_sides(tmp_path):
  images = noise(4)
  for name, image in zip(('train/cat/a.png', 'train/dog/b.png', 'test/cat/c.png', 'val/dog/d.png'), images):
    write(tmp_path / name, image)
  source = sources.folder(str(tmp_path))
  assert source.train.facts.get('classes', ()) == ('cat', 'dog')
  assert np.array_equal(source.train.arrays['images'], images[:2])
  assert as_set(source.heldout.arrays['images']) == as_set(images[2:])


def only(path, **options):
  return sources.folder(str(path), heldout=0, **options).train.arrays['images'][0]


def test_transparent_parts_show_the_background(tmp_path):
  rgba = np.zeros((4, 4, 4), np.uint8)
  rgba[:2] = (10, 200, 30, 255)
  rgba[3] = (0, 0, 0, 128)
  write(tmp_path / 'a.png', rgba)
  image = only(tmp_path, background='#ff0000')
  assert image[0, 0].tolist() == [10, 200, 30] and image[2, 0].tolist() == [255, 0, 0]
  assert abs(int(image[3, 0, 0]) - 255 * 127 / 255) <= 1
  assert np.array_equal(only(tmp_path, channels=4), rgba)


def test_transparent_palettes_show_the_background(tmp_path):
  image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert('P')
  image.putpalette([0, 0, 255, 0, 255, 0])
  image.save(tmp_path / 'a.gif', transparency=1)
  image = only(tmp_path, background='red')
  assert image.tolist() == [[[0, 0, 255], [255, 0, 0]], [[255, 0, 0], [0, 0, 255]]]


def test_sixteen_bits_become_eight(tmp_path):
  write(tmp_path / 'a.png', (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16))
  assert np.array_equal(only(tmp_path, channels=1).ravel(), np.arange(256))
  write(tmp_path / 'a.png', np.full((4, 4), 200, np.uint16))  # nearly black, though it would fit a byte
  assert (only(tmp_path, channels=1) == 1).all()


def test_cmyk_and_grey_and_bilevel_images_become_rgb(tmp_path):
  Image.new('CMYK', (4, 4), (0, 255, 255, 0)).save(tmp_path / 'a.tif')
  Image.new('1', (4, 4), 1).save(tmp_path / 'b.png')
  Image.new('L', (4, 4), 77).save(tmp_path / 'c.png')
  images = sources.folder(str(tmp_path), heldout=0).train.arrays['images']
  assert [image[0, 0].tolist() for image in images] == [[255, 0, 0], [255, 255, 255], [77, 77, 77]]


def test_a_turned_camera_is_turned_back(tmp_path):
  image = noise(1, 8, 4)[0]
  exif = Image.Exif()
  exif[0x0112] = 6  # shown turned by 90 degrees clockwise
  Image.fromarray(image).save(tmp_path / 'a.png', exif=exif)
  assert np.array_equal(only(tmp_path), np.rot90(image, -1))


def test_cropping_keeps_the_centre(tmp_path):
  image = np.zeros((4, 12, 3), np.uint8)
  image[:, 4:8] = noise(1, 4, 4)[0]
  write(tmp_path / 'a.png', image)
  assert np.array_equal(only(tmp_path, size=4), image[:, 4:8])


def test_padding_centres_on_the_background_and_never_enlarges(tmp_path):
  image = noise(1, 4, 2)[0]
  write(tmp_path / 'a.png', image)
  padded = only(tmp_path, size=8, fit='pad', background='lime')
  assert np.array_equal(padded[2:6, 3:5], image)
  padded[2:6, 3:5] = (0, 255, 0)
  assert (padded == (0, 255, 0)).all()


@pytest.mark.parametrize('kind,slack', [('png', 1.5), ('jpg', 4)])
def test_scaling_down_averages_and_does_not_alias(tmp_path, kind, slack):
  # Stripes finer than the result can hold must come out as their mean, neither as stripes nor as one colour.
  stripes = np.zeros((512, 512, 3), np.uint8)
  stripes[:, ::2] = 200
  write(tmp_path / f'a.{kind}', stripes)
  small = only(tmp_path, size=16).astype(float)
  assert np.abs(small[2:-2, 2:-2] - 100).max() <= slack


def test_scaling_down_a_jpeg_agrees_with_the_area_mean(tmp_path):
  y, x = np.mgrid[:256, :384] / 256
  smooth = np.stack([x / 1.5, y, .5 + .3 * np.sin(6 * x)], -1) * 255
  write(tmp_path / 'a.jpg', smooth.astype(np.uint8), quality=95, subsampling=0)
  expected = smooth[:, 64:320].reshape(16, 16, 16, 16, 3).mean((1, 3))
  assert np.abs(only(tmp_path, size=16, resample='box') - expected).max() < 4


def test_unreadable_images_are_named_and_skipped_or_stop(tmp_path):
  for name, image in zip('abc', noise(3)):
    write(tmp_path / f'{name}.png', image)
  (tmp_path / 'b.png').write_bytes((tmp_path / 'b.png').read_bytes()[:60])
  (tmp_path / 'd.jpg').write_bytes(b'')
  (tmp_path / 'e.png').symlink_to('nowhere.png')
  source = sources.folder(str(tmp_path), heldout=0)
  assert len(source.train.arrays['images']) == 2
  assert source.notes == ('3 unreadable images skipped: 1 for image file is truncated (b.png); '
                          '1 for it is no image (d.jpg); 1 for No such file or directory (e.png)',)
  with pytest.raises(InputError, match='cannot read b.png'):
    sources.folder(str(tmp_path), unreadable='stop')


def test_labels_and_captions_stay_with_their_images_when_one_is_skipped(tmp_path):
  for name, value in (('a/1', 10), ('b/2', 20), ('c/3', 30)):
    write(tmp_path / f'{name}.png', np.full((3, 3, 3), value, np.uint8))
    (tmp_path / f'{name}.txt').write_text(str(value))
  (tmp_path / 'b/2.png').write_bytes(b'broken')
  train = sources.folder(str(tmp_path), heldout=0).train
  assert [train.facts['classes'][k] for k in train.arrays['labels']] == ['a', 'c']
  assert tuple(train.arrays['captions']) == ('10', '30')
  assert train.arrays['images'][:, 0, 0, 0].tolist() == [10, 30]


def test_bad_folders_and_options_are_refused(tmp_path):
  with pytest.raises(InputError, match='no such folder'):
    sources.folder(str(tmp_path / 'gone'))
  with pytest.raises(InputError, match=f'{tmp_path}: no images'):
    sources.folder(str(tmp_path))
  (tmp_path / 'a.png').write_bytes(b'x')
  with pytest.raises(InputError, match='none of 1 .*a.png'):
    sources.folder(str(tmp_path))
  write(tmp_path / 'a.png', noise(1, 4, 4)[0])
  write(tmp_path / 'b.png', noise(1, 5, 4)[0])
  with pytest.raises(InputError, match='a.png is 4x4, b.png is 5x4.*size='):
    sources.folder(str(tmp_path))
  write(tmp_path / 'cat/c.png', noise(1, 4, 4)[0])
  with pytest.raises(InputError, match=f'{tmp_path}: 2 .*labelled=False'):
    sources.folder(str(tmp_path), size=4)
  for options in (dict(size=0), dict(size=(4, 4, 4)), dict(size=4.5), dict(channels=5), dict(background='?'),
                  dict(fit='squash'), dict(resample='magic'),
                  dict(labelled=False, size=4, unreadable='maybe')):
    with pytest.raises(InputError, match=list(options)[-1]):
      sources.folder(str(tmp_path), **options)
