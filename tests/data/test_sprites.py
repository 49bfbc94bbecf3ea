"""Generated sprites: reproducible, no leak to the held-out side, every attribute shows, inside the frame."""
import os
import pathlib
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from diffusion.data import sources, sprites
from diffusion.data.sprites.canvas import AUTO, Canvas, render, scale2x, SIDE
from diffusion.errors import InputError
from diffusion.system import cache


@pytest.fixture(scope='module')
def made():
  return sprites.generate(2400, 300, seed=0)


@pytest.fixture(scope='module')
def drawn():
  return [sprites.sprite(index) for index in range(1500)]


def both_ways(images):
  return {image.tobytes() for image in np.concatenate([images, images[:, :, ::-1]])}


def test_no_heldout_image_or_combination_of_attributes_is_in_training(made):
  train, heldout = made
  assert len(train.arrays['images']) == 2400 and len(heldout.arrays['images']) == 300
  assert not both_ways(train.arrays['images']) & both_ways(heldout.arrays['images'])

  def combinations(side):
    pairs = zip(side.arrays['labels'], side.arrays['attributes'])
    return {(label, str(sorted(values.items()))) for label, values in pairs}

  assert not combinations(train) & combinations(heldout)


def test_classes_are_balanced_on_both_sides(made):
  for side, slack in zip(made, (60, 35)):
    counts = np.bincount(side.arrays['labels'], minlength=6)
    assert np.abs(counts - len(side.arrays['labels']) / 6).max() < slack


def test_most_images_are_different(made):
  assert len({image.tobytes() for image in made[0].arrays['images']}) > .9 * len(made[0].arrays['images'])


def test_a_sprite_depends_on_seed_and_index_only():
  # Other process, other hash seed, other order, other number of sprites.
  program = """
import hashlib
from diffusion.data import sprites
for n, heldout in (70, 0), (40, 12):
  data, _ = sprites.generate(n, heldout, seed=5)
  images, attributes = (data.arrays[name][:40] for name in ('images', 'attributes'))
  print(hashlib.sha256(images.tobytes() + str(tuple(attributes)).encode()).hexdigest())
"""
  lines = []
  here = pathlib.Path(__file__).parents[2]
  for hash_seed in '1', '2':
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True,
                          cwd=here, env=dict(os.environ, PYTHONHASHSEED=hash_seed))
    lines += done.stdout.split()
  assert len(lines) == 4 and len(set(lines)) == 1


def test_another_seed_gives_other_sprites():
  first, second = (sprites.generate(60, 0, seed)[0] for seed in (0, 1))
  texts = lambda data: {str(values) for values in data.arrays['attributes']}
  assert not texts(first) & texts(second)


def test_every_value_of_every_attribute_can_be_seen(drawn):
  """For each kind and attribute, some sprite looks different for every value of that attribute alone."""
  groups = {}
  for label, values, _ in drawn:
    for key, value in values.items():
      groups.setdefault((label, values.get('kind'), key), []).append((value, values))
  tried, unseen = 0, []
  for (label, kind, key), members in groups.items():
    known = {value for value, _ in members}
    if key == 'kind' or len(known) < 2:
      continue
    tried += 1
    looks = ({render([sprites.draw(label, {**values, key: value})]).tobytes() for value in known}
             for _, values in members[:12])
    if not any(len(seen) == len(known) for seen in looks):
      unseen.append((label, kind, key))
  assert tried > 100 and not unseen


def test_things_and_their_outlines_stay_inside_the_frame(drawn):
  outside = set()
  for label, values, canvas in drawn:
    cells = np.array(canvas.cells).reshape(SIDE, SIDE)
    if label in (1, 2, 3, 4) and (cells[[0, -1]].any() or cells[:, [0, -1]].any()):
      outside.add(values['kind'])
  assert not outside


def test_a_dark_outline_one_pixel_wide_surrounds_every_silhouette(drawn):
  canvases = [canvas for _, _, canvas in drawn[:120]]
  for canvas, image in zip(canvases, render(canvases)):
    filled = {(i % SIDE, i // SIDE) for i, cell in enumerate(canvas.cells) if cell}
    for y in range(SIDE):
      for x in range(SIDE):
        if (x, y) in filled:
          continue
        beside = filled & {(x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)}
        assert (image[y, x].max() < 90) if beside else (image[y, x] == 255).all()


def test_mirroring_and_moving_shift_the_drawing_and_nothing_else():
  canvas = Canvas()
  material = canvas.material('red')
  places = [(2, 3), (3, 3), (3, 4), (12, 9)]
  canvas.dots(places, material)
  canvas.move(1, -1, mirrored=True)
  found = {(i % SIDE, i // SIDE) for i, cell in enumerate(canvas.cells) if cell}
  assert found == {(15 - x + 1, y - 1) for x, y in places}
  canvas.move(1, 0)  # already at the margin that the outline needs
  assert max(x for x, _ in found) == 14
  assert found == {(i % SIDE, i // SIDE) for i, cell in enumerate(canvas.cells) if cell}
  assert set(canvas.tones) == {AUTO}


def test_scale2x_is_the_published_rule_pixel_by_pixel():
  rng = np.random.default_rng(0)
  image = rng.integers(0, 3, (1, 9, 7, 1)).astype(np.uint8) * np.array([100, 50, 7], np.uint8)
  out = scale2x(image)[0]
  at = lambda y, x: image[0, min(max(y, 0), 8), min(max(x, 0), 6)].tolist()
  for y in range(9):
    for x in range(7):
      b, d, e, f, h = at(y - 1, x), at(y, x - 1), at(y, x), at(y, x + 1), at(y + 1, x)
      quarter = [[e, e], [e, e]]
      if b != h and d != f:
        quarter = [[d if d == b else e, f if b == f else e], [d if d == h else e, f if h == f else e]]
      assert out[2 * y:2 * y + 2, 2 * x:2 * x + 2].tolist() == quarter


def test_captions_name_class_kind_and_colour_in_proper_english(made):
  for side in made:
    for label, values, text in zip(side.arrays['labels'], side.arrays['attributes'], side.arrays['captions']):
      words = text.replace(',', '').split()
      assert values['colour'] in words and '  ' not in text
      assert values.get('kind', 'hero') in text
      for article, word in zip(words, words[1:]):
        if article in ('a', 'an'):
          assert (article == 'an') == (word[0] in 'aeiou'), text


def test_the_source_enlarges_caches_and_repeats(tmp_path, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path))
  small = sources.sprites(size=16, n=60, heldout=10)
  path, = tmp_path.iterdir()
  before = path.stat().st_mtime_ns
  large = sources.sprites(size=64, n=60, heldout=10, low=16)
  assert path.stat().st_mtime_ns == before and list(tmp_path.iterdir()) == [path]
  assert large.train.arrays['images'].shape == (60, 64, 64, 3)
  assert large.heldout.arrays['images'].shape == (10, 64, 64, 3)
  for one, other in zip(small[:2], large[:2]):
    np.testing.assert_array_equal(other.arrays['low'], one.arrays['images'])
  for name in ('captions', 'attributes'):
    assert list(small.train.arrays[name]) == list(large.train.arrays[name])
  for little, big in zip(small.train.arrays['images'], large.train.arrays['images']):
    assert {tuple(pixel) for pixel in big.reshape(-1, 3)} == {tuple(pixel) for pixel in little.reshape(-1, 3)}
  path.write_bytes(b'broken')
  with pytest.warns(UserWarning, match='damaged'):
    again = sources.sprites(size=16, n=60, heldout=10)
  assert np.array_equal(again.train.arrays['images'], small.train.arrays['images'])


def test_the_cache_is_keyed_by_what_the_sprites_depend_on(tmp_path, monkeypatch):
  monkeypatch.setenv('DIFFUSION_CACHE', str(tmp_path))
  for options in (dict(), dict(seed=1), dict(n=13), dict(heldout=1)):
    sources.sprites(**{**dict(n=12, heldout=0), **options})
  monkeypatch.setattr(sprites, 'source_hash', lambda: 'other code')
  sources.sprites(n=12, heldout=0)
  assert len(list(cache.cache_dir().iterdir())) == 5


@pytest.mark.parametrize('options', [dict(size=24), dict(n=0), dict(heldout=-1), dict(seed=.5), dict(n=1e3)])
def test_bad_options_are_refused(options):
  with pytest.raises(InputError, match=next(iter(options))):
    sources.sprites(**options)


def test_designs_use_only_the_guaranteed_random_stream():
  """`random.random` is the stream that Python keeps between versions; the others may change."""
  class Only(random.Random):
    def choice(self, *_):
      raise AssertionError
    randrange = randint = shuffle = sample = uniform = getrandbits = choice
  for index in range(60):
    assert sprites.design(index % 6, Only(index))


def test_a_caption_says_what_is_spoken_and_nothing_else():
  """Captions are one-to-one with (class, what is spoken): neither says more than the other. And the words are there."""
  said, texts = {}, {}
  for index in range(12000):
    label, values = index % 6, sprites.design(index % 6, random.Random(index))
    text, spoken = sprites.caption(label, values), sprites.spoken(label, values)
    assert all(re.search(rf'\b{words}\b', text) for words in spoken.values()), (text, spoken)
    assert set(spoken) <= set(values)
    key = label, *sorted(spoken.items())
    assert said.setdefault(text, key) == key and texts.setdefault(key, text) == text
  assert 8000 < len(said) < 11500  # several sprites share a caption


def test_the_caption_changes_with_an_attribute_exactly_when_what_is_spoken_does():
  known, names = {}, {True: set(), False: set()}
  designs = [(index % 6, sprites.design(index % 6, random.Random(index))) for index in range(6000)]
  for label, values in designs:
    for name, value in values.items():
      known.setdefault((label, values.get('kind'), name), {})[str(value)] = value
  for label, values in designs[:1500]:
    for name, value in values.items():
      for other in known[label, values.get('kind'), name].values():
        other = dict(values, **{name: other})
        if name == 'kind' or value == other[name] or value == 'bald' and 'hair' not in values:
          continue  # other attributes would have to change with it
        changed = sprites.spoken(label, values) != sprites.spoken(label, other)
        assert (sprites.caption(label, values) != sprites.caption(label, other)) == changed, (values, name)
        names[changed].add(name)
  assert names[True] >= {'colour', 'second_colour', 'outfit', 'item', 'hat', 'hair', 'shield', 'eyes', 'bitten', 'mood'}
  assert names[False] >= {'skin', 'trim', 'boots', 'trousers', 'stance', 'gem', 'emblem', 'variant', 'shape'}
