"""--mode=edit as a user meets it: their own PNG and mask in, pictures out, and one clear line for every mistake."""
import json

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from diffusion import commands, main
from diffusion.errors import InputError
from diffusion.generation import edits, sampling
from diffusion.setup.config import filled
from diffusion.training import open_model
from tests.test_main import refused


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Pictures and masks of the user: 16x16 in colour, another, grey, small, of other sizes."""
  folder = tmp_path_factory.mktemp('pictures')
  rng = np.random.default_rng(0)
  def save(name, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(folder / name)
    return str(folder / name)
  half = np.zeros((16, 16)) + 255 * (np.arange(16)[:, None] >= 8)
  found = dict(
    picture=save('picture.png', rng.integers(0, 256, (16, 16, 3))), other=save('other.bmp', rng.integers(0, 256, (16, 16, 3))),
    grey=save('grey.png', rng.integers(0, 256, (16, 16))), small=save('small.png', rng.integers(64, 192, (8, 8, 3))),
    wide=save('wide.jpg', rng.integers(0, 256, (20, 30, 3))), half=save('half.png', half), black=save('black.png', 0 * half),
    white=save('white.png', 0 * half + 255), wide_mask=save('wide_mask.png', np.eye(20, 30) * 255))
  (folder / 'text.png').write_text('no picture')
  return found | dict(text=str(folder / 'text.png'), nowhere=str(folder / 'nowhere.png'))


def pixels(path):
  with Image.open(path) as image:
    return np.asarray(image)


def config_of(workdir, **options):
  config = filled(ConfigDict(main.stored(workdir)['config']))
  config.edit.num_samples = 3
  config.edit.update(options)
  return config


def edited(workdir, sampler=None, **options):
  """What --mode=edit does, in this process: (folder, arrays of samples.npz)."""
  config = config_of(workdir, **options)
  config.sampler = sampler or config.sampler
  commands.edit(config, epath.Path(workdir))
  folder = max((workdir / 'edits').iterdir())
  with np.load(folder / 'samples.npz', allow_pickle=False) as arrays:
    return folder, dict(arrays)


def other_model(trained, **changes):
  """The Experiment of a model of other channels or classes; nothing is computed with it here."""
  run, _, _ = open_model.open_run(config_of(trained), epath.Path(trained))
  return run._replace(**changes)


def test_the_command_paints_what_is_white_in_the_mask_and_nothing_else(trained, files, command):
  done = command('--mode=edit', f'--workdir={trained}', '--config.edit.task=repaint', f'--config.edit.image={files["picture"]}',
                 f'--config.edit.mask={files["half"]}', '--config.edit.classes=hero, food', '--config.edit.num_samples=3', '--config.edit.jump=2',
                 '--config.edit.repeats=2', '--config.sampler=dpmpp_2m')
  assert done.returncode == 0, done.stderr
  [folder] = (trained / 'edits').iterdir()
  assert {path.name for path in folder.iterdir()} == {'before_after.png', 'edit_00.png', 'edit_01.png', 'edit_02.png', 'samples.npz', 'record.json'}
  assert str(folder / 'before_after.png') in done.stdout and 'repaint' in done.stdout
  given = pixels(files['picture'])
  results = [pixels(folder / f'edit_{i:02d}.png') for i in range(3)]
  for image in results:
    np.testing.assert_array_equal(image[:8], given[:8])
  assert len({image[8:].tobytes() for image in (*results, given)}) == 4
  record = json.loads((folder / 'record.json').read_text())
  assert (record['labels'], record['step']) == (['input', 'to paint', 'hero', 'food', 'hero'], 8)
  assert (record['config']['edit']['task'], record['config']['sampler']) == ('repaint', 'dpmpp_2m')


def test_a_moved_picture_keeps_its_pixels_and_the_bare_strip_is_painted(trained, files, command):
  done = command('--mode=edit', f'--workdir={trained}', '--config.edit.task=outpaint', f'--config.edit.image={files["picture"]}',
                 '--config.edit.shift=(3, -5)', '--config.edit.num_samples=1', '--config.edit.repeats=1')
  assert done.returncode == 0, done.stderr
  folder = max((trained / 'edits').iterdir())
  np.testing.assert_array_equal(pixels(folder / 'edit_00.png')[3:, :11], pixels(files['picture'])[:13, 5:])
  given = edits.read(other_model(trained), config_of(trained, task='outpaint', image=files['small']))  # all around a small picture
  np.testing.assert_array_equal(given.picture[4:12, 4:12], pixels(files['small']))
  assert not given.mask[4:12, 4:12].any() and given.mask.sum() == 16 * 16 - 64


def test_image_to_image_is_the_picture_at_strength_0_and_a_fresh_sample_at_1(trained, files):
  _, arrays = edited(trained, task='img2img', image=files['picture'], strength=0.)
  np.testing.assert_array_equal(arrays['images'], np.stack([pixels(files['picture'])] * 3))
  _, arrays = edited(trained, task='img2img', image=files['picture'], strength=1., classes='hero', seed=5)
  config = config_of(trained)
  run, checkpoints, _ = open_model.open_run(config, epath.Path(trained))
  params = open_model.restore(run, checkpoints).ema
  cond, _ = sampling.class_conditions(run.classes, 'hero', 3)
  np.testing.assert_array_equal(arrays['images'], sampling.make_draw(run, 5, 3)(params, np.arange(3), cond)[0])


def test_inversion_says_how_near_it_comes_back_and_an_interpolation_ends_there(trained, files):
  folder, arrays = edited(trained, task='invert', image=files['picture'], source_class='hero', classes='food,spell')
  assert arrays['images'].shape == (3, 16, 16, 3) and arrays['noise'].shape == (1, 16, 16, 3)
  assert not np.array_equal(arrays['images'][1], arrays['images'][2])
  rms = json.loads((folder / 'record.json').read_text())['reconstruction_rms']
  assert rms == pytest.approx(np.sqrt(np.mean((arrays['images'][0].astype(float) - pixels(files['picture'])) ** 2)))
  _, path = edited(trained, task='interpolate', image=files['other'], target=files['picture'], classes='hero', num_samples=3)
  np.testing.assert_allclose(path['images'][-1].astype(int), arrays['images'][0].astype(int), atol=1)
  assert path['images'].shape == (3, 16, 16, 3) and not np.allclose(path['images'][0], path['images'][-1], atol=9)


def test_colours_keep_the_grey_picture_and_enlarged_ones_the_small(trained, files):
  _, arrays = edited(trained, task='colourise', image=files['grey'], sampler='heun')
  grey, x = pixels(files['grey']).astype(float), arrays['images']
  inside = np.all((x > 0) & (x < 255), -1)  # a colour out of range is cut off in the file
  np.testing.assert_allclose((x @ [.299, .587, .114])[inside], np.broadcast_to(grey, inside.shape)[inside], atol=1)
  assert inside.mean() > .2 and np.ptp(x, -1).max() > 5
  _, arrays = edited(trained, task='upscale', image=files['small'])
  x = arrays['images'].reshape(3, 8, 2, 8, 2, 3)
  inside = np.all((x > 0) & (x < 255), (2, 4))
  small = np.broadcast_to(pixels(files['small']), inside.shape)
  np.testing.assert_allclose(x.mean((2, 4))[inside], small[inside], atol=1)
  assert inside.mean() > .2 and len(np.unique(arrays['images'].reshape(3, -1), axis=0)) == 3


def test_another_size_is_scaled_and_cropped_with_its_mask_where_that_is_asked_for(trained, files):
  _, arrays = edited(trained, task='inpaint', image=files['wide'], mask=files['wide_mask'], resize=True, num_samples=1)
  assert arrays['picture'].shape == (16, 16, 3) and 0 < arrays['mask'].sum() < 40
  known = ~arrays['mask'][..., 0]
  np.testing.assert_array_equal(arrays['images'][0][known], arrays['picture'][known])


MISTAKES = [
  (dict(task='inpant'), "did you mean 'inpaint'"), (dict(), 'edit.image=FILE'), (dict(image='picture'), 'edit.mask=FILE'),
  (dict(image='nowhere', mask='half'), 'no such file'), (dict(image='text', mask='half'), 'cannot be read as a picture'),
  (dict(image='wide', mask='wide_mask'), '20x30 .* 16x16.*resize=True'), (dict(image='picture', mask='wide_mask'), '20x30.* 16x16'),
  (dict(image='picture', mask='black'), 'nothing to paint'), (dict(image='picture', mask='white'), 'nothing of the picture would stay'),
  (dict(image='picture', mask='half', classes='heroo'), "did you mean 'hero'"), (dict(image='picture', mask='half', num_samples=0), 'num_samples=0'),
  (dict(task='img2img', image='picture', strength=1.5), 'strength=1.5'), (dict(task='img2img', image='picture', mask='half'), 'does not use'),
  (dict(task='interpolate', image='picture'), 'edit.target=FILE'), (dict(task='repaint', image='picture', mask='half', jump=0), 'jump=0'),
  (dict(task='outpaint', image='picture'), 'nothing to paint'), (dict(task='outpaint', image='picture', shift=(20, 0)), 'nothing .* is left'),
  (dict(task='outpaint', image='wide'), '20x30'), (dict(task='upscale', image='small', factor=3), 'factor=3'),
  (dict(task='upscale', image='picture'), '16x16 .* 8x8'),
  (dict(image='picture', mask='half', sampler='adaptive'), 'every level'),
]


@pytest.mark.parametrize('options, message', MISTAKES, ids=[message[:20] for _, message in MISTAKES])
def test_mistakes_are_named_before_anything_is_read_from_the_checkpoint_or_drawn(options, message, trained, files, monkeypatch):
  def too_late(*_):
    raise AssertionError('the mistake came to light too late')
  monkeypatch.setattr(commands, 'restore', too_late)
  options = {key: files.get(value, value) if isinstance(value, str) else value for key, value in options.items()}
  with pytest.raises(InputError, match=message) as error:
    edited(trained, **options)
  assert '\n' not in str(error.value)


def test_mistakes_are_one_line_on_the_command_line(trained, files, command):
  edit = lambda *words: command('--mode=edit', f'--workdir={trained}', *words)
  refused(edit('--config.edit.task=img2img', f'--config.edit.image={files["wide"]}'), '20x30', '16x16', 'resize')
  refused(edit('--config.edit.strength=much'), 'strength', 'much')


def test_colour_is_refused_by_a_grey_model_and_classes_by_one_without(trained, files):
  grey = other_model(trained, shape=(16, 16, 1))
  with pytest.raises(InputError, match='in colour'):
    edits.read(grey, config_of(trained, task='img2img', image=files['picture']))
  with pytest.raises(InputError, match='3 .RGB.'):
    edits.read(grey, config_of(trained, task='colourise', image=files['grey']))
  given = edits.read(grey, config_of(trained, task='img2img', image=files['grey']))
  np.testing.assert_array_equal(given.picture[..., 0], pixels(files['grey']))
  with pytest.raises(InputError, match='without classes'):
    edits.read(other_model(trained, classes=()), config_of(trained, task='img2img', image=files['picture'], classes='hero'))
