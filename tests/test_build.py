"""Specs and checks: what is understood, and what is refused in one clear line before anything is built."""
import jax
import numpy as np
import pytest

from diffusion import build, sharding
from diffusion.config import default, tiny
from diffusion.errors import InputError

SHAPE, CLASSES = (8, 8, 1), ('a', 'b')


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(jax.devices()[:1])


def config(**changes):
  c = tiny(default())
  with c.unlocked():
    c.update(changes)
  return c


@pytest.mark.parametrize('spec, expected', [
  ('cosine', ('cosine', [], {})),
  (' ddim( eta = 0.5 ) ', ('ddim', [], dict(eta=.5))),
  ('folder(/my/pictures, size=32)', ('folder', ['/my/pictures'], dict(size=32))),
  ("folder('/with, comma', background='#ffffff')", ('folder', ['/with, comma'], dict(background='#ffffff'))),
  ('unet(multipliers=(1, 2, (3)), dtype=bfloat16)', ('unet', [], dict(multipliers=(1, 2, 3), dtype='bfloat16'))),
  ('table([1, 2, .5])', ('table', [[1, 2, .5]], {})),
  ('linear(T=None)', ('linear', [], dict(T=None))),
])
def test_specs_are_parsed(spec, expected):
  assert build.parse(spec) == expected


@pytest.mark.parametrize('changes, message', [
  (dict(sampler='dimm'), "config.sampler='dimm': unknown 'dimm'; did you mean 'ddim'?.*ddim, ddpm"),
  (dict(schedule='cosinus'), "did you mean 'cosine'"),
  (dict(sampler='ddim(etta=1)'), r"unknown argument 'etta'; expected ddim\(eta=0.0\)"),
  (dict(sampler='ddim(eta=1'), 'closing bracket'),
  (dict(sampler='ddim(eta=0.1, 2)'), 'named argument'),
  (dict(sampler='ddim(1, 2, 3)'), 'too many positional'),
  (dict(sampler='ddim(eta=3)'), 'from 0 to 1'),
  (dict(grid='trailing(ten)'), "'ten'"),
  (dict(grid='trailing(5000)'), 'at most 1000'),
  (dict(schedule='from_betas'), "missing a required argument: 'betas'"),
  (dict(decay='cosin'), "did you mean 'cosine'"),
  (dict(schedule='flow', predict='eps'), 'says nothing about x0'),
  (dict(schedule='edm', predict='eps'), 'belong together'),
  (dict(schedule='cosine', predict='edm'), 'belong together'),
  (dict(net='unet(channels=16, constrain=1)'), "unknown argument 'constrain'"),
  (dict(net='unet(channels=16, multipliers=(1, 1, 1, 1, 1))'), '16'),
  (dict(batch=0), 'config.batch=0'), (dict(beta2=1.5), 'beta2=1.5'), (dict(guidance=float('nan')), 'guidance'),
  (dict(condition_dropout=0., guidance=2.), 'learned to do without'), (dict(weight='min_snr(abc)'), "gamma='abc'"),
  (dict(net='unet(attention=(4))'), r'such as \(4,\)'), (dict(net='unet(channels=abc)'), 'whole numbers'),
  (dict(schedule='from_betas(abc)'), 'from_betas'), (dict(draw='table([1, [2]])'), 'table'),
  (dict(log_every=0), 'config.log_every=0'), (dict(ema=1.5), 'config.ema=1.5'),
  (dict(learning_rate=float('nan')), 'learning_rate'), (dict(condition_dropout=-.1), 'condition_dropout'),
])
def test_what_does_not_fit_is_named_before_anything_is_built(changes, message, mesh):
  with pytest.raises(InputError, match=message):
    build.build(config(**changes), SHAPE, CLASSES, mesh)


def test_a_batch_must_divide_over_the_devices():
  class Eight:  # stands in for a mesh of eight devices
    size = 8
  sharding.check_batch('config.batch', 64, Eight)
  with pytest.raises(InputError, match='config.batch=60 does not divide over 8 devices; use a multiple of 8 such as 64'):
    sharding.check_batch('config.batch', 60, Eight)


def test_every_choice_of_every_field_can_be_built_from_its_bare_name_or_says_what_it_needs(mesh):
  needs = dict(from_betas='betas', table='weights')
  for field in ('task', 'net', 'schedule', 'predict', 'draw', 'weight', 'error', 'sampler', 'grid'):
    for name in build.CHOICES[field]:
      if name in needs:
        with pytest.raises(InputError, match=needs[name]):
          build.make(field, name)
      else:
        assert build.make(field, name) is not None


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_zero(mesh):
  rate = lambda **changes: build.build(config(steps=100, warmup=10, learning_rate=2e-3, **changes), SHAPE, CLASSES, mesh).rate
  cosine, constant = rate(), rate(decay='constant')
  assert [float(r(10)) for r in (cosine, constant)] == pytest.approx([2e-3, 2e-3])
  assert float(cosine(0)) == pytest.approx(2e-4)                       # never a step that does nothing
  assert float(cosine(5)) == pytest.approx((2e-4 + 2e-3) / 2)
  assert float(cosine(55)) == pytest.approx(1e-3, rel=1e-5)            # half-way down a half cosine
  assert float(cosine(100)) == pytest.approx(0, abs=1e-9)
  assert float(constant(99)) == pytest.approx(2e-3)


def test_the_ema_decay_rises_to_its_limit(mesh):
  ema = build.build(config(ema=.99), SHAPE, CLASSES, mesh).ema
  assert [float(ema(step)) for step in (0, 90, 10_000)] == pytest.approx([.1, .91, .99])


def test_guidance_and_clipping_are_as_configured(mesh):
  x = np.linspace(-3, 3, 4 * 64, dtype=np.float32).reshape(4, 8, 8, 1)
  cond = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
  level = build.take(build.make('schedule', 'cosine'), 700)
  preds = {}
  for guidance, clipped in ((1., False), (0., False), (3., False), (3., True)):
    net = 'unet(channels=16, multipliers=(1,), blocks=1, zero_init=False)'
    run = build.build(config(guidance=guidance, clip=clipped, net=net), SHAPE, CLASSES, mesh)
    preds[guidance, clipped] = run.denoise(run.init(jax.random.key(0)), cond)(x, level).x0
  c, u, g = preds[1., False], preds[0., False], preds[3., False]
  assert float(abs(c - u).max()) > .01
  np.testing.assert_allclose(g, u + 3 * (c - u), atol=1e-4)
  np.testing.assert_allclose(preds[3., True], np.clip(g, -1, 1), atol=1e-5)
