"""The forecast of a run before its first step, against XLA's counts."""
import re

import jax
import numpy as np
import pytest

from diffusion.data.arrays import image_dataset
from diffusion.setup.config import default, tiny
from diffusion.system import flops
from diffusion.training.loop import abstract_inputs
from diffusion.training.resources import forecast
from diffusion.training.state import abstract_state
from experiments.image_run import image_run

CHIP = flops.Chip(bfloat16=4e12, float32=2e12, bandwidth=1e11, memory=1e9, link=1e9)


DATA = image_dataset(np.zeros((1, 16, 16, 3), np.uint8), np.zeros(1, np.int32), ('a', 'b'))


@pytest.fixture(scope='module')
def run():
  config = tiny(default())
  net = 'unet(channels=16, multipliers=(1,), blocks=1, attention=(), fast=False)'
  config.update(dict(net=net, batch=8, steps=10 ** 9, guide='', lr_schedule='constant(warmup=2)'))
  return image_run(config, (16, 16, 3), ('a', 'b')), config


def number(text, unit):
  return float(re.search(rf'([\d.]+) {unit}', text)[1])


def test_flops_and_utilisation_and_the_least_time_are_those_of_the_compiled_step(run, monkeypatch):
  monkeypatch.setitem(flops.PEAKS, jax.devices()[0].device_kind, CHIP)
  lines, usage, step = forecast(*run, DATA)
  compiled = step.lower(abstract_state(run[0]), *abstract_inputs(run[0], DATA)).compile()
  counted = compiled.cost_analysis()['flops'] / 8  # of an image; XLA leaves out padding, and adds what is no product
  each = number(lines['network'], 'GFLOP') * 1e9
  assert counted == pytest.approx(each, rel=.25)
  assert usage(CHIP.float32 / each)['flop_utilisation'] == pytest.approx(1, rel=.01)
  assert number(lines['time'], 'h') == pytest.approx(8e9 * each / CHIP.float32 / 3600, rel=.01)


def test_what_does_not_fit_is_said_with_what_would_and_nothing_is_promised_where_no_peak_is_known(run, monkeypatch):
  lines, usage, _ = forecast(*run, DATA)
  assert 'will not fit' not in lines and 'time' not in lines and usage(100.) == {}
  half = (number(lines['memory'], 'GB per device') - .005) / 2 * 1e9
  monkeypatch.setattr(flops, 'memory_available', lambda device: half)
  assert re.search(r'config\.(grad_accumulation|batch|net|fsdp)', forecast(*run, DATA)[0]['will not fit'])
