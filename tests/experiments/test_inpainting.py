"""What the reports on in-painting and up-sampling measure, against closed forms and the generator of the sprites."""
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion.core import schedules
from diffusion.data import sources, sprites
from diffusion.data.sprites.canvas import render
from diffusion.errors import InputError
from diffusion.evaluation.metrics.restoration import psnr
from diffusion.samplers import constraints
from experiments import inpainting, upsampling

RNG = np.random.default_rng(0)


@pytest.fixture(scope='module')
def heldout():
  return sources.sprites(n=40, heldout=90).heldout


def test_a_task_changes_one_thing_and_the_area_holds_all_of_it(heldout):
  tasks = inpainting.tasks_of(heldout, 12, 0)
  assert len(tasks) == 12 and {next(iter(task.wanted)) for task in tasks} == {'hat', 'item'}
  of = {str(caption): i for i, caption in enumerate(heldout.arrays['captions'])}
  for task in tasks:
    label, own = heldout.arrays['labels'][of[task.caption]], heldout.arrays['attributes'][of[task.caption]]
    head, value = next(iter(task.wanted.items()))
    assert value in task.prompt and sprites.spoken(label, own)[head] != value and task.prompt != task.caption
    assert 0 < task.mask.mean() < .6
    changed = [sprites.draw(label, own | {head: value} | ({'hat_colour': 'red'} if head == 'hat' else {}))
               for _ in range(2)]
    changed[1].move(0, 0, True)
    after = render(changed)
    outside = ~task.mask[..., 0]
    assert any(np.array_equal(image[outside], task.image[outside]) for image in after)


def test_psnr_and_seam_in_closed_form():
  truth, noise = RNG.integers(60, 190, (5, 8, 8, 3)), RNG.normal(0, 20, (5, 8, 8, 3))
  whole = np.ones((5, 8, 8, 1), bool)
  np.testing.assert_allclose(inpainting.masked_psnr(truth + noise, truth, whole), psnr(truth + noise, truth, 255))
  mask = np.zeros((5, 8, 8, 1), bool)
  mask[:, 2:5, 3:7] = True
  within = np.where(mask, noise, 1e3)
  np.testing.assert_allclose(inpainting.masked_psnr(truth + within, truth, mask),
                             psnr((truth + noise)[:, 2:5, 3:7], truth[:, 2:5, 3:7], 255))
  flat = np.full((5, 8, 8, 3), 100)
  np.testing.assert_allclose(inpainting.seam(np.where(mask, flat + 17, flat), mask), 17)
  np.testing.assert_allclose(inpainting.seam(flat, mask), 0)


@pytest.mark.parametrize('budget, evaluations', [(10, 10), (96, 96), (97, 96)])
def test_equal_evaluations_whatever_repaint_repeats(budget, evaluations):
  run = SimpleNamespace(schedule=schedules.cosine(1000), config=SimpleNamespace(sampler='ddim(eta=1)'))
  sampler, levels = inpainting.longest(run, lambda sampler: sampler, budget)
  assert len(sampler.plan(levels).h) == budget
  again = lambda sampler: constraints.repaint(sampler, 0., True, 5, 5)
  sampler, levels = inpainting.longest(run, again, budget)
  assert len(sampler.plan(levels).h) <= evaluations and len(sampler.plan(levels).h) > evaluations - 5
  with pytest.raises(InputError, match='--budgets'):
    inpainting.longest(run, again, 0)


def test_small_images_are_the_column_or_means_over_blocks():
  data = sources.sprites(size=32, n=4, heldout=0, low=16).train
  np.testing.assert_array_equal(sprites.enlarge(upsampling.small(data, 2), 32), data.arrays['images'])
  plain = data._replace(arrays=dict(images=data.arrays['images']))
  low = upsampling.small(plain, 4)
  for y, x in np.ndindex(8, 8):
    block = data.arrays['images'][:, 4 * y:4 * y + 4, 4 * x:4 * x + 4].astype(float)
    np.testing.assert_allclose(low[:, y, x], block.mean((1, 2)), atol=.5)
  made = upsampling.interpolated(low, (32, 32, 3))
  np.testing.assert_array_equal(made['nearest'], low.repeat(4, 1).repeat(4, 2))
