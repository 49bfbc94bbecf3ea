"""--mode=edit as a user meets it: their own image and mask in, images out, and one clear line for every mistake."""
import json

import numpy as np
import pytest
from etils import epath
from ml_collections import ConfigDict
from PIL import Image

from diffusion import commands, main
from diffusion.errors import InputError
from diffusion.generation import edit_inputs, edits, sampling
from diffusion.setup.config import filled
from diffusion.tasks.image import image as image_task
from diffusion.training import open_model
from tests.test_main import refused


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Images and masks of the user: 16x16 in colour, another, grey, small, of other sizes."""
  folder = tmp_path_factory.mktemp('images')
  rng = np.random.default_rng(0)
  def save(name, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(folder / name)
    return str(folder / name)
  half = np.zeros((16, 16)) + 255 * (np.arange(16)[:, None] >= 8)
  paths = dict(
    image=save('image.png', rng.integers(0, 256, (16, 16, 3))),
    other=save('other.bmp', rng.integers(0, 256, (16, 16, 3))),
    grey=save('grey.png', rng.integers(0, 256, (16, 16))), small=save('small.png', rng.integers(64, 192, (8, 8, 3))),
    wide=save('wide.jpg', rng.integers(0, 256, (20, 30, 3))), half=save('half.png', half),
    black=save('black.png', 0 * half), white=save('white.png', 0 * half + 255),
    wide_mask=save('wide_mask.png', np.eye(20, 30) * 255))
  (folder / 'text.png').write_text('no image')
  return paths | dict(text=str(folder / 'text.png'), nowhere=str(folder / 'nowhere.png'))


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


def read(trained, changes, **options):
  """The inputs that a model of other channels or classes reads; nothing is computed with it."""
  run, *_ = open_model.open_run(config_of(trained, **options), epath.Path(trained))
  return edit_inputs.read(run._replace(**changes))


def test_the_command_paints_what_is_white_in_the_mask_and_nothing_else(trained, files, command):
  done = command('--mode=edit', f'--workdir={trained}', '--config.edit.task=repaint',
                 f'--config.edit.image={files["image"]}', f'--config.edit.mask={files["half"]}',
                 '--config.edit.classes=hero, food', '--config.edit.num_samples=3', '--config.edit.jump=2',
                 '--config.edit.repeats=2', '--config.sampler=dpmpp_2m')
  assert done.returncode == 0, done.stderr
  [folder] = (trained / 'edits').iterdir()
  assert {path.name for path in folder.iterdir()} == {
    'before_after.png', 'edit_00.png', 'edit_01.png', 'edit_02.png', 'samples.npz', 'record.json'}
  assert str(folder / 'before_after.png') in done.stdout and 'repaint' in done.stdout
  original = pixels(files['image'])
  results = [pixels(folder / f'edit_{i:02d}.png') for i in range(3)]
  for image in results:
    np.testing.assert_array_equal(image[:8], original[:8])
  assert len({image[8:].tobytes() for image in (*results, original)}) == 4
  record = json.loads((folder / 'record.json').read_text())
  assert (record['labels'], record['step']) == (['input', 'to paint', 'hero', 'food', 'hero'], 8)
  assert (record['config']['edit']['task'], record['config']['sampler']) == ('repaint', 'dpmpp_2m')


def test_outpainting_keeps_the_shifted_pixels_and_paints_the_rest(trained, files, command):
  done = command('--mode=edit', f'--workdir={trained}', '--config.edit.task=outpaint',
                 f'--config.edit.image={files["image"]}', '--config.edit.shift=(3, -5)', '--config.edit.num_samples=1',
                 '--config.edit.repeats=1')
  assert done.returncode == 0, done.stderr
  folder = max((trained / 'edits').iterdir())
  np.testing.assert_array_equal(pixels(folder / 'edit_00.png')[3:, :11], pixels(files['image'])[:13, 5:])
  inputs = read(trained, {}, task='outpaint', image=files['small'])  # on all sides of a small image
  np.testing.assert_array_equal(inputs.image[4:12, 4:12], pixels(files['small']))
  assert not inputs.mask[4:12, 4:12].any() and inputs.mask.sum() == 16 * 16 - 64


def test_image_to_image_is_the_image_at_strength_0_and_a_fresh_sample_at_1(trained, files):
  _, arrays = edited(trained, task='img2img', image=files['image'], strength=0.)
  np.testing.assert_array_equal(arrays['images'], np.stack([pixels(files['image'])] * 3))
  _, arrays = edited(trained, task='img2img', image=files['image'], strength=1., classes='hero', seed=5)
  config = config_of(trained)
  run, checkpoints, *_ = open_model.open_run(config, epath.Path(trained))
  weights = open_model.choose_weights(run, open_model.restore(run, checkpoints), trained)
  cond = run.task.ask(dict(classes='hero'), np.arange(3), 0).cond
  drawn = sampling.make_draw(run, 5, 3)(weights, np.arange(3), cond)[0]['images']
  np.testing.assert_array_equal(arrays['images'], drawn)


def test_inversion_records_its_error_and_an_interpolation_ends_there(trained, files):
  folder, arrays = edited(trained, task='invert', image=files['image'], source_class='hero', classes='food,spell')
  assert arrays['images'].shape == (3, 16, 16, 3) and arrays['noise'].shape == (1, 16, 16, 3)
  assert not np.array_equal(arrays['images'][1], arrays['images'][2])
  rms = json.loads((folder / 'record.json').read_text())['reconstruction_rms']
  assert rms == pytest.approx(np.sqrt(np.mean((arrays['images'][0].astype(float) - pixels(files['image'])) ** 2)))
  _, path = edited(trained, task='interpolate', image=files['other'], target=files['image'], classes='hero')
  np.testing.assert_allclose(path['images'][-1].astype(int), arrays['images'][0].astype(int), atol=1)
  assert path['images'].shape == (3, 16, 16, 3) and not np.allclose(path['images'][0], path['images'][-1], atol=9)


def test_colourised_images_keep_the_luma_and_upscaled_ones_the_block_averages(trained, files):
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


def test_resize_scales_and_crops_the_image_and_its_mask(trained, files):
  _, arrays = edited(trained, task='inpaint', image=files['wide'], mask=files['wide_mask'], resize=True, num_samples=1)
  assert arrays['picture'].shape == (16, 16, 3) and 0 < arrays['mask'].sum() < 40
  known = ~arrays['mask'][..., 0]
  np.testing.assert_array_equal(arrays['images'][0][known], arrays['picture'][known])


MISTAKES = [
  (dict(task='inpant'), r"config\.edit\.task='inpant'.*did you mean 'inpaint'"), (dict(), r'config\.edit\.image=FILE'),
  (dict(image='image'), r'config\.edit\.mask=FILE'),
  (dict(image='nowhere', mask='half'), r"config\.edit\.image='.*nowhere.png': no such file"),
  (dict(image='text', mask='half'), r"config\.edit\.image='.*text.png' cannot be read"),
  (dict(image='wide', mask='wide_mask'), r'config\.edit\.image=.*20x30 .* 16x16.*config\.edit\.resize=True'),
  (dict(image='image', mask='wide_mask'), r'config\.edit\.mask=.*20x30.* 16x16'),
  (dict(image='image', mask='black'), r'config\.edit\.mask=.*black.png.* is black everywhere'),
  (dict(image='image', mask='white'), r'config\.edit\.mask=.*white.png.* is white .*everywhere'),
  (dict(image='image', mask='half', classes='heroo'), r"config\.edit\.classes='heroo'.*did you mean 'hero'"),
  (dict(image='image', mask='half', num_samples=0), r'config\.edit\.num_samples=0'),
  (dict(task='img2img', image='image', strength=1.5), r'config\.edit\.strength=1\.5'),
  (dict(task='img2img', image='image', mask='half'), r'config\.edit\.mask=.*half.png.*img2img does not use'),
  (dict(task='interpolate', image='image'), r'config\.edit\.target=FILE'),
  (dict(task='interpolate', image='image', target='other', num_samples=1), r'config\.edit\.num_samples=1: .*from 2 '),
  (dict(task='repaint', image='image', mask='half', jump=0), r'config\.edit\.jump=0'),
  (dict(task='outpaint', image='image'), r'config\.edit\.image=.*fills all 16x16 .*config\.edit\.shift'),
  (dict(task='outpaint', image='image', shift=(20, 0)), r'config\.edit\.shift=\(20, 0\).* 16x16'),
  (dict(task='outpaint', image='wide'), r'config\.edit\.image=.*20x30'),
  (dict(task='upscale', image='small', factor=3), r'config\.edit\.factor=3 .*16x16'),
  (dict(task='upscale', image='image'), '16x16 .* 8x8'),
  (dict(image='image', mask='half', sampler='adaptive'), 'every level'),
]


@pytest.mark.parametrize('options, message', MISTAKES)
def test_mistakes_are_named_before_the_checkpoint_is_read(options, message, trained, files, monkeypatch):
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


def test_colour_is_refused_by_a_grey_model_and_classes_by_an_unconditional_one(trained, files):
  grey = dict(example=(np.zeros((1, 16, 16, 1), np.float32), np.zeros((1, 6), np.float32)))
  with pytest.raises(InputError, match=r'config\.edit\.image=.*image.png.* in colour'):
    read(trained, grey, task='img2img', image=files['image'])
  with pytest.raises(InputError, match=r"config\.edit\.task='colourise'.* 1 channels.* 3 .RGB."):
    read(trained, grey, task='colourise', image=files['grey'])
  inputs = read(trained, grey, task='img2img', image=files['grey'])
  np.testing.assert_array_equal(inputs.image[..., 0], pixels(files['grey']))
  with pytest.raises(InputError, match=r"config\.edit\.classes='hero'.*without classes"):
    free = image_task(facts=dict(shape=[16, 16, 3]))
    read(trained, dict(task=free), task='img2img', image=files['image'], classes='hero')


def test_every_task_has_an_operation():
  assert set(edits.OPERATIONS) == set(edit_inputs.TASKS)
