"""NIfTI volumes: which slices, which way up, how bright, and what is held out."""
import importlib.util

import numpy as np
import pytest

from diffusion.data import volumes
from diffusion.errors import InputError

nibabel = pytest.importorskip('nibabel', reason='nibabel is not installed')
needs_brain = pytest.mark.skipif(not importlib.util.find_spec('nilearn'), reason='nilearn is not installed')


def saved(path, array, mm=(1., 1., 1.), codes='RAS'):
  """A file whose array [X, Y, Z, ..] runs to the right, the front and up, stored in another orientation."""
  image = nibabel.Nifti1Image(np.asarray(array), np.diag([*mm, 1.]))
  turned = nibabel.orientations.ornt_transform(nibabel.orientations.axcodes2ornt('RAS'),
                                               nibabel.orientations.axcodes2ornt(codes))
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(image.as_reoriented(turned), path)
  return str(path)


def ramp(shape=(8, 8, 12)):
  """Bright everywhere, and each slice across the last axis of its own brightness."""
  return np.broadcast_to(np.arange(100, 100 + shape[-1], dtype=np.int16), shape)


def levels(data, name='images'):
  """The brightness of constant images."""
  images = data.arrays[name]
  assert not np.ptp(images.reshape(len(images), -1), 1).any()
  return images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize('codes', ['RAS', 'LPI', 'PSR'])
@pytest.mark.parametrize('axis, corner', [('axial', 'front'), ('coronal', 'up'), ('sagittal', 'up')])
def test_the_front_or_the_top_is_up_and_the_right_is_on_the_left(axis, corner, codes, tmp_path):
  """One bright voxel at the right, in front and at the top; the file is stored in several orientations."""
  array = np.full((6, 6, 6), 50, np.uint8)
  array[5, 5, 5] = 250
  source = volumes.nifti(saved(tmp_path / 'a.nii.gz', array, codes=codes), axis, 6, values=(0, 250), heldout=0)
  assert source.train.arrays['images'].shape == (6, 6, 6, 1)
  # the slices run to the right, the front and up; in each the first row is the front (axial) or the top
  assert source.train.arrays['images'][5, 0, 0, 0] == 255 and (source.train.arrays['images'] == 51).sum() == 215


def test_slices_keep_their_proportions_in_mm_and_are_those_of_the_array(tmp_path):
  """Voxels of 1 x 2 x 3 mm, 12 of them across and 12 down: a slice is twice as high as wide."""
  array = np.random.default_rng(0).integers(0, 256, (12, 12, 2)).astype(np.float32)
  path = saved(tmp_path / 'a.nii', array, (1., 2., 3.))
  [one, _] = volumes.nifti(path, size=(24, 24), values=(0, 255), heldout=0).train.arrays['images'][..., 0]
  assert not one[:, :6].any() and not one[:, 18:].any() and one[:, 6:18].any(0).all()
  plain = saved(tmp_path / 'b.nii', array)
  [same, _] = volumes.nifti(plain, size=12, values=(0, 255), heldout=0).train.arrays['images']
  np.testing.assert_array_equal(same[..., 0], array[::-1, ::-1, 0].T)
  [fine, _] = volumes.nifti(plain, size=12, values=(0, 255), bits=16, heldout=0).train.arrays['high']
  np.testing.assert_array_equal(fine[..., 0], 257 * array[::-1, ::-1, 0].T)


def test_the_middle_of_one_volume_is_held_out_and_what_is_near_left_out(tmp_path):
  """12 slices of 2 mm: 4 and 7 are the ends of the block; a gap of 5 mm leaves out 2 on each side."""
  path = saved(tmp_path / 'a.nii', ramp(), (1., 1., 2.))
  source = volumes.nifti(path, size=8, heldout=4, values=(0, 255))
  assert levels(source.heldout) == [104, 105, 106, 107] and levels(source.train) == [100, 101, 110, 111]
  assert 'slices 4 to 7 are held out, and 4 left out' in source.notes[-1]
  assert levels(volumes.nifti(path, size=8, heldout=4, gap=0, values=(0, 255)).train) == [
    100, 101, 102, 103, 108, 109, 110, 111]
  frames = np.stack([ramp(), ramp() + 20], -1)
  both = volumes.nifti(saved(tmp_path / 'b.nii', frames, (1., 1., 2.)), size=8, heldout=4, values=(0, 255))
  assert sorted(levels(both.heldout)) == [104, 105, 106, 107, 124, 125, 126, 127]


def test_of_a_folder_persons_are_held_out_whole(tmp_path):
  for person in range(5):
    for scan in range(2):
      saved(tmp_path / f'sub-{person}/anat/{scan}.nii.gz', np.full((4, 4, 3), 50 + 40 * person + scan, np.int16))
  found = volumes.nifti(str(tmp_path), size=4, values=(0, 255))
  held, train = set(levels(found.heldout)), set(levels(found.train))
  [person] = {(level - 50) // 40 for level in held}
  assert held == {50 + 40 * person, 51 + 40 * person} and len(train) == 8 and not held & train
  assert f'5 persons (sub-folders, or files outside of them), held out: sub-{person}' in found.notes
  assert len(set(levels(volumes.nifti(str(tmp_path), size=4, values=(0, 255), heldout=2).heldout))) == 4


def test_slices_that_show_little_are_left_out_and_values_are_clipped(tmp_path):
  array = np.full((10, 10, 3), -1000., np.float32)
  array[:5, :, 1:] = 40
  array[0, 0, 2] = np.nan
  path = saved(tmp_path / 'ct.nii', array)
  source = volumes.nifti(path, size=10, least=.5, values=(-160, 40), heldout=0)
  assert len(source.train.arrays['images']) == 1 and '1 of 3 slices' in source.notes[0]
  assert set(np.unique(source.train.arrays['images'])) == {0, 255}
  assert source.notes[1] == '1 voxels without a finite value are black'
  assert 'black is -1000 and white 40' in volumes.nifti(path, size=10, heldout=0).notes[1]


def test_mistakes_are_named(tmp_path, monkeypatch):
  path = saved(tmp_path / 'a.nii', ramp())
  (tmp_path / 'broken.nii.gz').write_bytes(b'nothing')
  (tmp_path / 'empty').mkdir()
  same = saved(tmp_path / 'same.nii', np.ones((4, 4, 4), np.uint8))
  five = saved(tmp_path / 'five.nii', np.ones((4, 4, 4, 1, 3), np.uint8))
  for call, message in [
    (lambda: volumes.nifti(path, 'up'), "axis='up'.*axial"), (lambda: volumes.nifti(path, bits=12), 'bits=12'),
    (lambda: volumes.nifti(path, least=1), 'least=1'), (lambda: volumes.nifti(path, gap=-1), 'gap=-1'),
    (lambda: volumes.nifti(path, values=(3, 1)), r'values=\(3, 1\)'),
    (lambda: volumes.nifti(path, size=8, heldout=9), 'leave none of 10 slices'),
    (lambda: volumes.nifti(path, size=8, values=(200, 255)), 'no slice has 10%'),
    (lambda: volumes.nifti(str(tmp_path / 'no.nii')), 'no such file or folder'),
    (lambda: volumes.nifti(str(tmp_path / 'empty')), 'no .nii or .nii.gz'),
    (lambda: volumes.nifti(str(tmp_path / 'broken.nii.gz')), 'cannot be read as a volume'),
    (lambda: volumes.nifti(same), 'values=.black, white'), (lambda: volumes.nifti(five), '3-D or 4-D'),
  ]:
    with pytest.raises(InputError, match=message) as raised:
      call()
    assert '\n' not in str(raised.value)
  monkeypatch.setitem(__import__('sys').modules, 'nibabel', None)
  with pytest.raises(InputError, match='pip install nibabel'):
    volumes.nifti(path)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install nilearn'):
    volumes.brain()


@needs_brain
def test_no_held_out_slice_of_the_brain_has_a_near_copy_in_training():
  """Neighbours are 1 mm and 32 dB apart in the middle of these images; 5 mm leave 23 dB or less."""
  source = volumes.brain(64)
  train, held = (side.arrays['images'].astype(np.float64) for side in source[:2])
  assert len(held) == 18 and len(train) == 95
  nearest = min(np.mean((a - b) ** 2) for a in held[[0, -1]] for b in train)
  neighbour = np.mean((held[1:] - held[:-1]) ** 2, (1, 2, 3)).max()
  assert nearest > 255 ** 2 / 10 ** 2.35 > 4 * neighbour
  np.testing.assert_allclose(held, held[:, :, ::-1], atol=12)  # its halves are symmetric: it is upright
