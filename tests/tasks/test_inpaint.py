"""The task of in-painting: random masks, what the network sees of an image, and the condition around it."""
import jax
import numpy as np
import pytest

from diffusion.data.arrays import image_dataset
from diffusion.errors import InputError
from diffusion.setup.choices import make
from diffusion.tasks import inpaint
from diffusion.tasks.inpaint import kept, masks

RNG = np.random.default_rng(0)
DATA = image_dataset(RNG.integers(0, 256, (6, 8, 8, 3)).astype(np.uint8), RNG.integers(0, 2, 6).astype(np.int32),
                     ('hero', 'food'), ['a hero', 'a red hero', 'food', 'green food', 'a hero', 'food'])


def made(spec):
  """(the inner task, the task around it, the data as they prepare them)."""
  inner, task = (make('task', each, data=DATA) for each in (spec, f'inpaint(task={spec})'))
  return inner, task, task.prepare((), DATA)


def encoded(task, data, key=None):
  encode = jax.jit(lambda key, batch: task.encode((), key, batch))
  return jax.device_get(encode(key, task.batch(data, np.arange(6))))


# ---- masks
def test_boxes_are_rectangles_of_a_quarter_to_three_quarters_of_the_sides():
  each = drawn(inpaint._boxes)
  rows, columns = each.any(2), each.any(1)
  np.testing.assert_array_equal(each, rows[:, :, None] & columns[:, None])
  for side in (rows, columns):
    assert np.all(np.abs(np.diff(side.astype(int), axis=1)).sum(1) <= 2)  # without a gap
    share = side.mean(1)
    assert share.min() >= .25 - 1 / 20 and share.max() <= .75 + 1 / 20 and share.mean() == pytest.approx(.5, abs=.03)


def test_halves_are_those_on_each_of_the_four_sides():
  each, seen = drawn(inpaint._halves), set()
  for mask in each:
    line = mask[:, 0] if (mask == mask[:, :1]).all() else mask[0]
    down = (mask == mask[:, :1]).all()
    assert (mask == (line[:, None] if down else line)).all() and abs(np.diff(line.astype(int))).sum() == 1
    seen.add((bool(down), bool(line[0])))
  assert len(seen) == 4 and each.mean() == pytest.approx(.5, abs=.05)


def test_strokes_are_what_is_near_lines_between_points():
  """Against the least distance to many points along the same lines."""
  key = jax.random.key(3)
  centres = (np.arange(20) + .5) / 20
  places = np.stack(np.meshgrid(centres, centres, indexing='ij'), -1).astype(np.float32)
  points, width = jax.random.split(key)
  ends = np.asarray(jax.random.uniform(points, (9, 4, 1, 1, 2)), np.float64)[:, :, 0, 0]
  widths = np.asarray(jax.random.uniform(width, (9, 1, 1), minval=.06, maxval=.15))
  share = np.linspace(0, 1, 2001)[:, None]
  strokes = np.asarray(jax.jit(lambda key: inpaint._strokes(key, 9, places))(key))
  for mask, corners, far in zip(strokes, ends, widths[:, 0, 0]):
    line = np.concatenate([(1 - share) * a + share * b for a, b in zip(corners, corners[1:])])
    distance = np.min(np.linalg.norm(places[:, :, None] - line, axis=-1), -1)
    clear = abs(distance - far) > 1e-3
    np.testing.assert_array_equal(mask[clear], (distance < far)[clear])


def drawn(kind, number=300, side=20):
  centres = (np.arange(side) + .5) / side
  places = np.stack(np.meshgrid(centres, centres, indexing='ij'), -1).astype(np.float32)
  return np.asarray(jax.jit(lambda key: kind(key, number, places))(jax.random.key(1)))


@pytest.mark.parametrize('empty', [0., .25, 1.])
def test_a_share_of_the_masks_leaves_nothing_and_each_of_the_others_something(empty):
  share = np.asarray(jax.jit(lambda key: masks(key, 4000, (8, 12), empty))(jax.random.key(0))).mean((1, 2, 3))
  assert abs((share == 1).mean() - empty) <= 4 * np.sqrt(empty * (1 - empty) / 4000)
  assert share.min() > 0


# ---- the condition
def test_the_network_sees_the_image_where_it_is_kept_and_ones_there():
  x0, mask = RNG.normal(size=(2, 4, 5, 3)).astype(np.float32), RNG.integers(0, 2, (2, 4, 5, 1)).astype(bool)
  seen = np.asarray(jax.jit(kept)(x0, mask))
  for index in np.ndindex(2, 4, 5):
    wanted = [0, 0, 0, 0] if mask[index][0] else [*x0[index], 1]
    np.testing.assert_array_equal(seen[index], np.float32(wanted))


@pytest.mark.parametrize('spec', ['text_to_image', 'image', 'image(augment=.5)'])
def test_the_rest_of_the_task_is_as_it_was(spec):
  inner, task, data = made(spec)
  for key in (None, jax.random.key(4)):
    (x0, cond), (own, rest) = encoded(task, data, key), encoded(inner, data, key)
    seen = cond['kept']
    np.testing.assert_array_equal(x0, own)
    jax.tree.map(np.testing.assert_array_equal, inpaint._rest(cond), rest)
    np.testing.assert_array_equal(seen[..., :3], np.where(seen[..., 3:], x0, 0))
    assert seen.any() == (key is not None)  # whole images are drawn, and measured, with nothing kept
    led = task.null(cond)
    np.testing.assert_array_equal(led['kept'], seen)
    jax.tree.map(np.testing.assert_array_equal, inpaint._rest(led), inner.null(rest))
  np.testing.assert_array_equal(task.decode((), x0, cond)['images'], inner.decode((), x0, rest)['images'])


def test_what_is_kept_can_be_asked_for_and_stays_in_between_two_texts():
  inner, task, _ = made('text_to_image')
  seen = RNG.normal(size=(8, 8, 4)).astype(np.float32)
  asked = task.ask(dict(prompt='a hero', kept=seen), np.arange(3), 0)
  assert asked.labels == ['a hero'] * 3
  np.testing.assert_array_equal(asked.cond['kept'], np.stack([seen] * 3))
  assert not task.ask(dict(prompt='a hero'), np.arange(2), 0).cond['kept'].any()
  ends = [jax.tree.map(lambda a: a[:1], task.ask(dict(prompt=text, kept=seen), np.arange(1), 0).cond)
          for text in ('a hero', 'food')]
  between = task.between(*ends, np.array([0., .3, 1.]))
  np.testing.assert_array_equal(between['kept'], np.stack([seen] * 3))
  jax.tree.map(np.testing.assert_array_equal, inpaint._rest(between),
               inner.between(*map(inpaint._rest, ends), np.array([0., .3, 1.])))


@pytest.mark.parametrize('spec, message', [
  ('inpaint(task=image, empty=2)', 'empty=2'), ('inpaint(task=points)', 'whole images'),
  ('inpaint(task=restore(deblur(1)))', 'whole images')])
def test_what_is_no_task_of_whole_images_is_refused(spec, message):
  with pytest.raises(InputError, match=message):
    make('task', spec)


def test_a_kept_part_of_another_size_is_refused():
  _, task, _ = made('text_to_image')
  for wrong in (np.zeros((4, 4, 4), np.float32), 'half.png'):
    with pytest.raises(InputError, match=r'kept: expected an array \[8, 8, 4\].*--mode=edit'):
      task.ask(dict(kept=wrong), np.arange(1), 0)
