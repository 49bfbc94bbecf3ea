"""Pages are checked by their pixels: images must be found in them unchanged, and text must overlap nothing."""
from etils import epath
import numpy as np
from PIL import Image
import pytest

from diffusion.errors import InputError
from diffusion.tasks import pages
from diffusion.tasks.fonts import escaped, font_of
from diffusion.system.files import write_atomic

RNG = np.random.default_rng(0)


def noise(n, size=16, channels=3):
  return RNG.integers(0, 256, (n, size, size, channels), np.uint8)


def find(page, image):
  """Top left corners (y, x) at which `page` shows `image`, pixel for pixel."""
  page, (height, width) = np.asarray(page), image.shape[:2]
  starts = np.argwhere((page == image[0, 0]).all(-1))
  return [(y, x) for y, x in starts.tolist() if np.array_equal(page[y:y + height, x:x + width], image)]


def enlarged(image, factor):
  return np.repeat(np.repeat(image, factor, 0), factor, 1)


def text_box(page, blank):
  """(y0, x0, y1, x1) around the pixels by which two pages of the same size differ."""
  where = np.argwhere((np.asarray(page) != np.asarray(blank)).any(-1))
  return (*where.min(0), *where.max(0))


def overlap(a, b):
  return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def test_grid_shows_each_image_once_unchanged_but_enlarged_and_in_reading_order():
  images = noise(6)
  page = pages.grid(images, columns=3, labels=list('abcdef'), title='six')
  corners = [find(page, enlarged(image, 4)) for image in images]
  assert all(len(matches) == 1 for matches in corners)
  corners = [matches[0] for matches in corners]
  assert corners == sorted(corners) and len({y for y, _ in corners}) == 2 and len({x for _, x in corners}) == 3


@pytest.mark.parametrize('size, shown', [(8, 64), (28, 84), (32, 64), (64, 64), (200, 200)])
def test_small_images_reach_64_pixels_by_a_whole_factor_and_large_ones_stay(size, shown):
  image = noise(1, size)
  assert find(pages.grid(image), enlarged(image[0], shown // size)) == [(10, 10)]


def test_grey_is_shown_as_grey_and_transparency_over_white():
  grey = noise(1, channels=1)
  assert find(pages.grid(grey), enlarged(np.repeat(grey[0], 3, -1), 4))
  alpha = np.zeros((1, 16, 16, 4), np.uint8)
  alpha[..., 3] = np.arange(16) * 17
  shade = np.asarray(pages.grid(alpha))[10, 10:74:4, 0].astype(int)
  np.testing.assert_allclose(shade, 255 - np.arange(16) * 17, atol=1)


def test_captions_touch_neither_images_nor_each_other_nor_the_edge_of_the_page():
  images = np.full((4, 16, 16, 3), 200, np.uint8)
  long = 'WWWW gypsum jars, quite a long name'
  blank = pages.grid(images, 2, [''] * 4)
  captioned = [pages.grid(images, 2, [long if i == k else '' for i in range(4)]) for k in range(4)]
  boxes = [text_box(page, blank) for page in captioned]
  tiles = [(y, x, y + 63, x + 63) for y, x in find(blank, enlarged(images[0], 4))]
  assert len(tiles) == 4
  areas = boxes + tiles
  assert not any(overlap(a, b) for i, a in enumerate(areas) for b in areas[:i])
  assert all(y0 > 0 and x0 > 0 and y1 < blank.height - 1 and x1 < blank.width - 1 for y0, x0, y1, x1 in boxes)


def test_labels_of_rows_and_columns_and_the_title_touch_nothing_and_are_not_cut_off():
  strip = [np.full((3, 16, 16, 3), 200, np.uint8)] * 2
  page = pages.rows(strip, ['DDPM', 'DDIM (eta = 0), guidance'], ['t = 1000', 't = 500', 't = 0'],
                    'A title that is wider than the page ' * 3)
  pixels = np.asarray(page)
  tiles = find(page, enlarged(strip[0][0], 4))
  assert len(tiles) == 6
  assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()
  left, top = min(x for _, x in tiles), min(y for y, _ in tiles)
  ink = pixels.min(-1) < 128
  assert ink[top:, :left].any() and not ink[top:, left - 6:left].any()
  # Above the images are two lines of text, the title and the column labels, with white between.
  starts = np.diff(ink[:top, left:].any(1).astype(int), prepend=0)
  assert (starts == 1).sum() == 2


def test_a_text_that_is_too_long_ends_in_an_ellipsis_and_a_short_one_is_left_alone():
  font, _ = font_of('axe', 13)
  assert pages._line('axe', 70).text == 'axe'
  cut = pages._line('a shield and a spear', 70).text
  assert cut.endswith('…') and font.getlength(cut) <= 70 and 'a shield and a spear'.startswith(cut[:-1])


def test_letters_of_any_alphabet_are_drawn_or_escaped_and_never_boxes():
  words = ['café', 'кот', 'γάτα', 'hero']
  for word in words:
    font, text = font_of(word, 13)
    assert text == word
    glyphs = {bytes(font.getmask(c)) for c in set(word)}
    assert len(glyphs) == len(set(word)), 'two letters look the same, as boxes do'
  unknown = '\U00010A00'  # Kharoshthi
  font, text = font_of(f'x{unknown}', 13)
  assert text in (f'x{unknown}', r'x\U00010a00') and font_of('a\x00b\ud800', 13)[1] == 'a b '
  assert escaped(f'é{unknown}') == r'é\U00010a00'


def test_rows_of_different_lengths_keep_their_columns():
  first, second = noise(3), noise(2)
  page = pages.rows([first, second], ['DDPM', 'DDIM'])
  above = [find(page, enlarged(image, 4))[0] for image in first]
  below = [find(page, enlarged(image, 4))[0] for image in second]
  assert [x for _, x in above[:2]] == [x for _, x in below]
  assert len({y for y, _ in above}) == 1 and below[0][0] > above[0][0]


@pytest.mark.parametrize('n, columns', [(1, 1), (3, 3), (7, 3), (10, 5), (16, 4), (64, 8)])
def test_columns_are_chosen_so_that_the_last_row_is_full_where_it_can_be(n, columns):
  assert pages._columns(n) == columns


def test_gif_loops_for_ever_holds_the_last_frame_and_shows_few_colours_exactly(tmp_path):
  frames = noise(5 * 4).reshape(5, 4, 16, 16, 3)
  frames[-1] = frames[-1] // 128 * 255
  labels = ['a', 'b', 'c', 'd']
  pages.save_gif(frames, tmp_path / 'new' / 'x.gif', labels=labels, fps=10)
  with Image.open(tmp_path / 'new' / 'x.gif') as gif:
    assert gif.n_frames == 5 and gif.info['loop'] == 0
    durations, shown = [], []
    for k in range(5):
      gif.seek(k)
      durations.append(gif.info['duration'])
      shown.append(np.asarray(gif.convert('RGB')).astype(int))
  assert durations == [100] * 4 + [2000]
  np.testing.assert_array_equal(shown[-1], np.asarray(pages.grid(frames[-1], labels=labels)))
  # Noise has more colours than a palette holds: close on average, and white stays white.
  expected = np.asarray(pages.grid(frames[0], labels=labels)).astype(int)
  assert np.abs(shown[0] - expected).mean() < 20 and (shown[0][:5] == 255).all()


def test_png_keeps_every_pixel_and_makes_the_parents(tmp_path):
  image = noise(1, 20, 4)[0]
  pages.save_png(image, tmp_path / 'a' / 'b' / 'x.png')
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / 'a' / 'b' / 'x.png')), image)


def test_a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = tmp_path / 'x.png'
  write_atomic(path, b'old')
  real = type(epath.Path(path)).write_bytes

  def full_disk(self, data):
    real(self, data[:2])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(type(epath.Path(path)), 'write_bytes', full_disk)
  with pytest.raises(InputError, match='cannot write .*x.png.*No space'):
    write_atomic(path, b'newer')
  assert [p.name for p in tmp_path.iterdir()] == ['x.png'] and path.read_bytes() == b'old'


@pytest.mark.parametrize('call, message', [
    (lambda: pages.grid(np.zeros((2, 8, 8, 3))), 'float64'),
    (lambda: pages.grid(np.zeros((2, 8, 8, 5), np.uint8)), r'\[2, 8, 8, 5\]'),
    (lambda: pages.grid(np.zeros((0, 8, 8, 3), np.uint8)), r'\[0, 8, 8, 3\]'),
    (lambda: pages.grid(noise(2), labels=['a']), 'labels: .* 2 images, got 1'),
    (lambda: pages.grid(noise(2), columns=0), 'columns=0'),
    (lambda: pages.rows([noise(2)], ['a', 'b']), 'rows: .* 1 rows and 2 labels'),
    (lambda: pages.rows([noise(2)], ['a'], ['x']), 'column_labels: expected 2.* got 1'),
    (lambda: pages.save_gif(noise(4)[:, None], 'never.gif', fps=0), 'fps=0'),
    (lambda: pages.save_gif([], 'never.gif'), 'frames: .* got none'),
])
def test_bad_input_is_one_line_with_the_offending_value(call, message):
  with pytest.raises(InputError, match=message) as caught:
    call()
  assert '\n' not in str(caught.value)


def test_words_beside_images_have_their_colours_and_go_on_in_the_next_line():
  images = np.full((3, 8, 8, 3), 200, np.uint8)
  words = [('one', 'black'), ('two', 'red'), ('three', 'green')] * 4
  pixels = lambda page, colour: np.argwhere((np.asarray(page) == colour).all(-1))
  short = pages.beside(images, [[words[:3]], [], []], 'title', width=120)
  long = pages.beside(images, [[words], [], []], 'title', width=120)
  assert len(pixels(short, (255, 0, 0))) * 4 == len(pixels(long, (255, 0, 0))) > 0  # each of them whole
  assert len(pixels(short, (0, 128, 0))) * 4 == len(pixels(long, (0, 128, 0))) > 0
  assert pixels(long, (255, 0, 0))[:, 1].max() <= 10 + 64 + 8 + 120 and long.width == short.width
  assert len(pixels(short, (200, 200, 200))) == len(pixels(long, (200, 200, 200))) == 3 * 64 ** 2  # nothing covered
  with pytest.raises(InputError, match='lines: expected those of each of the 3 images, got 1'):
    pages.beside(images, [[]])
