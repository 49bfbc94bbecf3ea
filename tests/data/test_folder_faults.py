"""Folders as people have them: links, hidden files, odd names, encodings, depths and broken files are read or said."""
import json
import os
import unicodedata
import zlib

import numpy as np
from PIL import Image, TiffImagePlugin
import pytest

from diffusion.data import decode_images, sources
from diffusion.data.dataset import describe, fingerprint
from diffusion.errors import InputError
from tests.data.test_folder import noise, write


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path_factory.mktemp('cache')))


def read(path, **options):
  return sources.folder(str(path), **dict(heldout=0) | options)


def images_of(folder, *names):
  for i, name in enumerate(names):
    write(folder / name, noise(1, seed=i)[0])


# ---- what a listing leaves out
def test_links_to_folders_are_followed_once_and_loops_are_cut(tmp_path):
  images_of(tmp_path, 'd/a/0.png', 'elsewhere/1.png', 'elsewhere/deep/2.png')
  (tmp_path / 'd/b').symlink_to(tmp_path / 'elsewhere')
  (tmp_path / 'elsewhere/round').symlink_to(tmp_path / 'd')
  (tmp_path / 'd/gone').symlink_to(tmp_path / 'nowhere')
  source = read(tmp_path / 'd')
  assert source.train.facts['classes'] == ('a', 'b') and source.train.arrays['labels'].tolist() == [0, 1, 1]
  notes = '\n'.join(source.notes)
  assert '1 links to a folder that they are in skipped: b/round' in notes
  assert '1 broken links and devices skipped: gone' in notes


def test_a_linked_test_folder_is_held_out_and_a_folder_linked_twice_is_said(tmp_path):
  images_of(tmp_path, 'd/train/0.png', 'far/1.png')
  (tmp_path / 'd/test').symlink_to(tmp_path / 'far')
  source = read(tmp_path / 'd')
  assert len(source.train.arrays['images']) == len(source.heldout.arrays['images']) == 1
  assert 'held out: what is in test; heldout and seed are not used' in source.notes
  (tmp_path / 'd/train/again').symlink_to(tmp_path / 'far')
  with pytest.raises(InputError, match='beside the class'):
    read(tmp_path / 'd')
  notes = '\n'.join(read(tmp_path / 'd', labelled=False).notes)
  assert 'train/again and test are the same folder' in notes and '1 of 1 held-out images also occur' in notes


def test_hidden_and_empty_folders_and_near_misses_of_names_are_said(tmp_path):
  images_of(tmp_path, 'a/0.png', 'a/1.png', '__macosx/0.png', '.git/0.png')
  (tmp_path / 'empty').mkdir()
  for name in ('a/0.png.txt', 'a/readme.txt', 'Metadata.jsonl', 'a/1.TXT'):
    (tmp_path / name).write_text('text')
  os.mkfifo(tmp_path / 'a/pipe.png')
  source = read(tmp_path)
  notes = '\n'.join(source.notes)
  for said in ('2 hidden files and folders skipped: .git, __macosx', '1 sub-folders hold no images: empty',
               '2 .txt files belong to no image: a/0.png.txt, a/readme.txt', 'Metadata.jsonl is not read',
               '1 broken links and devices skipped: a/pipe.png', '1 of 2 images have no caption'):
    assert said in notes
  assert list(source.train.arrays['captions']) == ['', 'text']


@pytest.mark.parametrize('names', [('train/0.png', 'test/0.png', 'raw/0.png'), ('test/0.png', 'val/0.png'),
                                   ('train/0.png', 'test/0.png', 'beside.png')])
def test_sides_beside_other_folders_are_refused(tmp_path, names):
  images_of(tmp_path, *names)
  with pytest.raises(InputError, match='sub-folders test'):
    read(tmp_path, labelled=False)


def test_training_and_testing_are_sides_and_a_lone_train_is_a_class(tmp_path):
  images_of(tmp_path, 'Training/0.png', 'testing/1.png')
  assert len(read(tmp_path).heldout.arrays['images']) == 1
  images_of(tmp_path / 'vehicles', 'train/0.png', 'bus/1.png')
  assert read(tmp_path / 'vehicles').train.facts['classes'] == ('bus', 'train')


# ---- names
def test_names_in_two_unicode_forms_are_one(tmp_path):
  name = 'é'
  two = [unicodedata.normalize(form, name) for form in ('NFC', 'NFD')]
  images_of(tmp_path, f'{two[0]}/0.png', f'{two[1]}/1.png', f'кот/{two[1]}.png')
  (tmp_path / f'кот/{two[0]}.txt').write_text('written', encoding='utf-8')
  source = read(tmp_path)
  assert source.train.facts['classes'] == ('é', 'кот')
  assert list(source.train.arrays['captions']) .count('written') == 1
  assert any('two Unicode forms' in note for note in source.notes)
  (tmp_path / 'metadata.jsonl').write_text(json.dumps(dict(file_name=f'кот/{two[0]}.png', text='x')))
  assert len(read(tmp_path).train.arrays['images']) == 1


def test_captions_of_names_that_look_the_same_are_refused(tmp_path):
  images_of(tmp_path, *(unicodedata.normalize(form, 'é.png') for form in ('NFC', 'NFD')))
  (tmp_path / 'metadata.jsonl').write_text('{"file_name": "é.png", "text": "x"}', encoding='utf-8')
  with pytest.raises(InputError, match='look the same'):
    read(tmp_path)


def test_a_name_that_is_no_text_can_be_said(tmp_path):
  images_of(tmp_path, 'a/0.png')
  os.mkdir(os.fsencode(tmp_path) + b'/b\xff')
  source = read(tmp_path)
  describe(source).encode()
  assert r'\udcff' in '\n'.join(source.notes)


# ---- captions
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-32'])
@pytest.mark.parametrize('text', ['a\u2028b', 'a\u0085b', 'a\u000cb', '猫 и кот'])
def test_metadata_in_any_marked_encoding_with_any_line_separator_inside(tmp_path, text, encoding):
  images_of(tmp_path, '0.png', '1.png')
  lines = [json.dumps(dict(file_name=f'{i}.png', text=text), ensure_ascii=False) for i in range(2)]
  (tmp_path / 'metadata.jsonl').write_bytes('\r\n'.join(lines).encode(encoding))
  assert list(read(tmp_path).train.arrays['captions']) == [text, text]
  (tmp_path / 'metadata.jsonl').unlink()
  (tmp_path / '0.txt').write_bytes(text.encode(encoding))
  assert list(read(tmp_path).train.arrays['captions']) == [text, '']


@pytest.mark.parametrize('content, message', [
  ('{"file_name": "0.png"}\n{"file_name": "./0.png"}', 'line 2: ./0.png has a line already .*line 1'),
  ('{"file_name": "0.png", "text": ["a", 1]}', 'line 1: text must be a text'),
  ('{"file_name": "0.png", "text": 5}', 'line 1: text must be a text'),
  ('{"file_name": "0.PNG"}', '0.PNG is not an image in this folder.*did you mean 0.png'),
  ('{"file_name": 0}', 'line 1: expected'), ('[' * 100_000, 'line 1: expected'), ('"text"', 'line 1: expected'),
  ('{"file_name": "0.png"}\n\n{'.encode('utf-16-le'), 'metadata.jsonl, line 1: a zero byte'),
  (b'{"file_name": "0.png",\n "text": "\xe9"}', 'metadata.jsonl, line 2: this is not text in UTF-8')])
def test_bad_metadata_is_refused_with_its_line(tmp_path, content, message):
  images_of(tmp_path, '0.png')
  (tmp_path / 'metadata.jsonl').write_bytes(content if isinstance(content, bytes) else content.encode())
  with pytest.raises(InputError, match=message) as error:
    read(tmp_path)
  assert '\n' not in str(error.value)


def test_fields_that_are_no_captions_and_captions_that_are_not_read_are_said(tmp_path):
  images_of(tmp_path, '0.png')
  (tmp_path / 'metadata.jsonl').write_text('{"file_name": "0.png", "caption": "x"}')
  (tmp_path / '0.txt').write_text('x')
  notes = '\n'.join(read(tmp_path).notes)
  assert 'no field text, but caption' in notes and '1 .txt files are not read' in notes


# ---- pixels
def test_images_of_32_bits_need_one_white_for_all(tmp_path):
  for name, value in (('a', 60000), ('b', 250)):
    Image.fromarray(np.full((4, 4), value, np.int32)).save(tmp_path / f'{name}.tif')
  with pytest.raises(InputError, match='2 for its 32 bits do not say which value is white'):
    read(tmp_path)
  images = read(tmp_path, white=65535, channels=1).train.arrays['images']
  assert images[:, 0, 0, 0].tolist() == [round(60000 / 257), 1]
  notes = read(tmp_path, white=255, channels=1).notes
  assert notes == ('1 unreadable images skipped: 1 for values outside 0 to 255, which is white (a.tif)',)


def test_float_images_and_those_that_are_not_finite(tmp_path):
  for name, value in (('a', .5), ('b', np.nan), ('c', np.inf)):
    Image.fromarray(np.full((4, 4), value, np.float32)).save(tmp_path / f'{name}.tif')
  source = read(tmp_path, white=1, channels=1)
  assert source.train.arrays['images'].reshape(-1).tolist() == [128] * 16
  assert source.notes == ('2 unreadable images skipped: 2 for values that are not finite (b.tif, c.tif)',)


def test_exif_that_is_malformed_beside_a_valid_orientation(tmp_path):
  exif = Image.Exif()
  exif[0x0112], exif[0x011A] = 6, TiffImagePlugin.IFDRational(72, 1)
  write(tmp_path / 'good.jpg', np.repeat(noise(1, 8, 16), 1, 0)[0], exif=exif, quality=95)
  data = bytearray((tmp_path / 'good.jpg').read_bytes())
  start = data.index(b'Exif') + 6
  order = 'little' if data[start:start + 2] == b'II' else 'big'
  entry = next(i for i in range(start, start + 200)
               if int.from_bytes(data[i:i + 2], order) == 0x011A and int.from_bytes(data[i + 2:i + 4], order) == 5)
  data[entry + 8:entry + 12] = (0xfffffff0).to_bytes(4, order)  # where the rational is: beyond the file
  (tmp_path / 'bad.jpg').write_bytes(data)
  images = read(tmp_path, size=8).train.arrays['images']
  assert len(images) == 2 and np.array_equal(images[0], images[1])


def test_long_texts_and_profiles_in_png_and_huge_images(tmp_path):
  from PIL.PngImagePlugin import PngInfo
  info = PngInfo()
  info.add_text('parameters', 'x' * 3_000_000, zip=True)
  write(tmp_path / 'text.png', noise(1)[0], pnginfo=info)
  write(tmp_path / 'profile.png', noise(1)[0], icc_profile=bytes(3_000_000))
  rows = zlib.compressobj(1)
  body = b''.join(rows.compress(bytes(1 + 14000 // 8)) for _ in range(14000)) + rows.flush()  # 196 megapixels of 1 bit
  chunk = lambda kind, data: (len(data).to_bytes(4, 'big') + kind + data
                              + zlib.crc32(kind + data).to_bytes(4, 'big'))
  head = (14000).to_bytes(4, 'big') * 2 + bytes([1, 0, 0, 0, 0])
  (tmp_path / 'huge.png').write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', body)
                                      + chunk(b'IEND', b''))
  source = read(tmp_path, size=6, channels=1)
  assert source.notes == () and len(source.train.arrays['images']) == 3


def test_of_an_image_with_several_frames_the_first_is_read_and_that_is_said(tmp_path):
  first, second = (Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (100, 200))
  for name in ('a.gif', 'b.tif'):
    first.save(tmp_path / name, save_all=True, append_images=[second])
  first.save(tmp_path / 'c.gif')
  source = read(tmp_path, channels=1)
  assert (source.train.arrays['images'] == 100).all() and len(source.train.arrays['images']) == 3
  assert source.notes == ('2 images have several frames, of which the first is read: a.gif, ..',)


def test_reasons_are_grouped_and_whole():
  said = decode_images._grouped([('a', 'it is no image'), ('b', 'truncated (x)'), ('c', 'it is no image')])
  assert said == '2 for it is no image (a, c); 1 for truncated (x) (b)'


# ---- classes
def test_classes_that_only_the_held_out_side_has_are_said_and_not_drawn(tmp_path):
  from diffusion.tasks import image
  images_of(tmp_path, 'train/cat/0.png', 'test/cat/1.png', 'test/dog/2.png')
  source = read(tmp_path)
  assert source.train.facts == dict(classes=('cat', 'dog'), untrained=('dog',))
  assert any('of 1 of 2 classes' in note and note.endswith('dog') for note in source.notes)
  ask = image.image(data=source.train).ask
  assert ask({}, np.arange(4), 0).labels == ['cat'] * 4
  assert ask(dict(classes='dog, cat'), np.arange(2), 0).labels == ['dog', 'cat']


def test_the_fingerprint_follows_contents_and_not_places(tmp_path):
  images_of(tmp_path, 'd/a/0.png', 'd/b/1.png')
  (tmp_path / 'd').rename(tmp_path / 'e')
  images_of(tmp_path, 'd/a/0.png', 'd/b/1.png')
  first, second = (fingerprint(read(tmp_path / name)) for name in 'de')
  assert first == second
  write(tmp_path / 'd/b/1.png', noise(1, seed=7)[0])
  assert fingerprint(read(tmp_path / 'd')) != first
  (tmp_path / 'e/b/1.txt').write_text('a caption')
  assert fingerprint(read(tmp_path / 'e')) != first
  streamed = [fingerprint(read(tmp_path / name, stream=True, size=6)) for name in 'de']
  assert streamed[0] != streamed[1]
