"""Specs and checks: what is understood, and what is refused in one clear line before anything is built."""
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from diffusion.core import grids, schedules
from diffusion.core.gaussian import take, Target, ve
from diffusion.errors import InputError
from diffusion.setup import build, specs, validate
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.tasks.classes import ask_classes
from experiments.image_run import image_run, weights_of

SHAPE, CLASSES = (8, 8, 1), ('a', 'b')


@pytest.fixture(scope='module')
def mesh():
  return sharding.make_mesh(devices=jax.devices()[:1])


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
  assert specs.parse(spec) == expected


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
  (dict(lr_schedule='cosin'), "did you mean 'cosine'"),
  (dict(lr_schedule='cosine(warmup=-1)'), 'warmup=-1'),
  (dict(optimizer='adma'), "did you mean 'adam"),
  (dict(schedule='flow', predict='eps'), 'says nothing about x0'),
  (dict(schedule='edm', predict='eps'), r"config\.predict='eps'.*schedule='edm'.*sigma=80.*'edm'"),
  (dict(schedule='edm(sigma_max=11)', predict='score'), r"config\.predict='score'.*sigma=11"),
  (dict(schedule='cosine', predict='edm'), r"config\.predict='edm'.*schedule='cosine'.* ve .* vp"),
  (dict(schedule='flow', predict='edm(sd=1)'), r"config\.predict='edm\(sd=1\)'.* ve .* flow"),
  (dict(net='unet(channels=16, constrain=1)'), "unknown argument 'constrain'"),
  (dict(net='unet(channels=16, multipliers=(1, 1, 1, 1, 1))'), '16'),
  (dict(batch=0), 'config.batch=0'),
  (dict(optimizer='adamw(b2=1.5)'), 'b2=1.5'),
  (dict(guide='cfg(nan)'), "scale='nan'"),
  (dict(condition_dropout=0., guide='cfg(2)'), 'learned to do without'), (dict(guide='cgf'), "did you mean 'cfg'"),
  (dict(guide='cfg | rescale(2)'), 'from 0 to 1'),
  (dict(guide='rescale(.5) | cfg'), 'come first'),
  (dict(guide='autoguidance'), "'model'"),
  (dict(guide='autoguidance(3)'), 'work directory'),
  (dict(guide='autoguidance(a) | classifier(b)'), 'only one part'),
  (dict(guide='cfg(1, negative=a)'), 'at scale 1'),
  (dict(schedule='flow(50)', predict='eps', grid='karras(5)'), 'says nothing'),
  (dict(self_condition=True, sampler='adaptive'), 'last estimate'),
  (dict(objective='discrete(kernel=uniform)', sampler='confident'), 'uniform kernel has none'),
  (dict(sampler='mixed(adaptive)'), 'categories need those of the grid'),
  (dict(objective='classifier', net='classifier(channels=16)', logvar_channels=8), 'config.logvar_channels=0'),
  *[(dict(objective=objective, **{field: value}), f'config.{field}=') for objective in ('mixed', 'discrete')
    for field, value in (('self_condition', True), ('logvar_channels', 8), ('noise_type', 'offset'),
                         ('variance', 'learned'), ('timesteps', 'loss_aware'))],
  (dict(objective='discrete', predict='eps'), "config.predict='x0'"),
  (dict(objective='discrete', loss_type='mae'), "config.loss_type='mse'"),
  (dict(timesteps='loss_aware', logvar_channels=8), 'use one of them'),
  (dict(objective='vdm', schedule='learned', loss_weight='vlb', noise_type='offset'), "config.noise_type='gaussian'"),
  (dict(guide='cfg(lo=3, hi=1)'), 'lower one first'),
  (dict(guide='apg(eta=7)'), 'eta=7'),
  (dict(guide='dynamic_threshold(99.5)'), 'share above 0'),
  (dict(guide='cfg(2, negative=c)'), "negative='c'.*valid: a, b"), (dict(guide='cfg(2, negative=7)'), "'7'.*a, b"),
  (dict(guide='cfg(2, negative=0)'), "negative='0'.*valid: a, b"), (dict(guide='cfg(2, negative=[0])'), 'name of one'),
  (dict(guide="cfg(2, negative='a, b')"), 'expected one class'),
  (dict(sampler='unipc(order=7)'), 'from 1 to 3'),
  (dict(sampler="ddpm(variance='learned')"), 'learned its variance'),
  (dict(schedule='zero_terminal(linear)', predict='eps'), 'says nothing about x0'),
  (dict(grid='karras(5, rho=-1)'), 'rho=-1'),
  (dict(grid='times([0.1, 0.5])'), 'noise to clean'),
  (dict(grid='sigmas([1, 2])'), 'noise to clean'),
  (dict(schedule='shift(cosinus, 3)'), "did you mean 'cosine'"),
  (dict(objective='classifier', net='classifier(channels=17)'), 'channels=17'),
  (dict(loss_weight='min_snr(abc)'), "gamma='abc'"),
  (dict(net='unet(attention=(4))'), r'such as \(4,\)'), (dict(net='unet(channels=abc)'), 'whole numbers'),
  (dict(schedule='from_betas(abc)'), 'from_betas'), (dict(timesteps='table([1, [2]])'), 'table'),
  (dict(log_every=0), 'config.log_every=0'), (dict(ema_decay=1.5), 'config.ema_decay=1.5'),
  (dict(learning_rate=float('nan')), 'learning_rate'), (dict(condition_dropout=-.1), 'condition_dropout'),
])
def test_what_does_not_fit_is_named_before_anything_is_built(changes, message, mesh):
  with pytest.raises(InputError, match=message):
    image_run(config(**changes), SHAPE, CLASSES, mesh)


def test_a_target_goes_with_any_schedule_that_it_solves_and_on_which_its_inputs_stay_small(monkeypatch):
  for predict in ('eps', 'x0', 'v', 'flow', 'score'):
    validate.check(config(schedule='edm(sigma_max=5)', predict=predict))
  new = dict(mine=lambda: lambda noise: Target(0., 1., 1 / np.sqrt(1 + noise.sigma ** 2)),
             fits=lambda: lambda noise: Target(1., 0., scalings=(ve,)))
  for name, make in new.items():
    monkeypatch.setitem(build.CHOICES['predict'], name, make)
    validate.check(config(schedule='edm', predict=name))
  for predict in ('scaled(eps)', 'scaled(v, sd=.3)', 'scaled(predict=x0)', 'scaled(score)'):
    assert validate.check(config(schedule='edm', predict=predict)).levels.sigma[0] == pytest.approx(80)
    with pytest.raises(InputError, match=r"sigma=80.*'edm', 'scaled\(eps\)'"):
      validate.check(config(schedule='edm', predict='eps'))
  validate.check(config(predict='scaled(x0)'))
  for predict, message in (('scaled(eqs)', "did you mean 'eps'"), ('scaled(eps, sd=0)', 'sd=0'),
                           ('scaled(edm)', 'needs the scaling ve')):
    with pytest.raises(InputError, match=message):
      validate.check(config(predict=predict))
  validate.check(config(predict='mine'))
  with pytest.raises(InputError, match=r"config\.predict='fits'.*config\.schedule='cosine'"):
    validate.check(config(predict='fits'))
  with pytest.raises(InputError, match='sigma=80'):  # trained there, whatever the grid visits
    validate.check(config(schedule='edm', predict='x0', grid='karras(5, sigma_max=1)'))


def test_a_grid_by_sections_is_read_from_the_command_line(mesh):
  for spec in ("sections('ddim25')", 'sections(ddim25)'):
    run = image_run(config(grid=spec, schedule='linear'), SHAPE, CLASSES, mesh)
    assert run.levels.time[:-1].tolist() == list(range(960, -1, -40))
  assert len(validate.check(config(grid='sections([10, 10, 15])')).levels.time) == 36
  for spec, message in (("sections('ddim300')", 'no whole stride'), ('sections(10,10,15)', 'too many positional')):
    with pytest.raises(InputError, match=message):
      validate.check(config(grid=spec))


def test_a_batch_must_divide_over_the_devices():
  class Eight:  # stands in for a mesh of eight devices
    size = 8
  sharding.check_batch('config.batch', 64, Eight)
  with pytest.raises(InputError, match='config.batch=60 .* 8 devices; .* 64'):
    sharding.check_batch('config.batch', 60, Eight)


def test_every_choice_of_every_field_can_be_built_from_its_bare_name_or_says_what_it_needs(mesh):
  needs = dict(from_betas='betas', scaled='predict', table='weights', shift='ratio', times='values', sigmas='values',
               sub_vp='schedule', zero_terminal='schedule', with_text='net')
  extra = dict(schedule=schedules.cosine(), levels=grids.trailing(10)(schedules.cosine()), classes=2)
  of_tasks = dict(latent='autoencoder', published='folder', inpaint='task', embeddings='clip', codes='clip',
                  unclip='clip')
  for field in ('task', 'degradation', 'net', 'schedule', 'predict', 'timesteps', 'loss_weight', 'loss_type',
                'noise_type', 'optimizer', 'lr_schedule', 'sampler', 'grid'):
    for name in build.CHOICES[field]:
      missing = (of_tasks if field == 'task' else needs).get(name)
      if missing:
        with pytest.raises(InputError, match=missing):
          build.make(field, name)
      else:
        assert build.make(field, name, **(extra if field != 'task' else {})) is not None


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_zero(mesh):
  settings = dict(steps=100, lr_schedule='cosine(warmup=10)', learning_rate=2e-3)
  rate = lambda **changes: image_run(config(**settings | changes), SHAPE, CLASSES, mesh).rate(100)
  cosine, constant = rate(), rate(lr_schedule='constant(warmup=10)')
  assert [float(r(10)) for r in (cosine, constant)] == pytest.approx([2e-3, 2e-3])
  assert float(cosine(0)) == pytest.approx(2e-4)                       # never a step that does nothing
  assert float(cosine(5)) == pytest.approx((2e-4 + 2e-3) / 2)
  assert float(cosine(55)) == pytest.approx(1e-3, rel=1e-5)            # half-way down a half cosine
  assert float(cosine(100)) == pytest.approx(0, abs=1e-9)
  assert float(constant(99)) == pytest.approx(2e-3)


def test_the_ema_decay_rises_to_its_limit(mesh):
  ema = image_run(config(ema_decay=.99), SHAPE, CLASSES, mesh).ema
  assert [float(ema(step)) for step in (0, 90, 10_000)] == pytest.approx([.1, .91, .99])


def test_guidance_and_clipping_are_as_configured(mesh):
  x = np.linspace(-3, 3, 4 * 64, dtype=np.float32).reshape(4, 8, 8, 1)
  cond = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
  level = take(build.make('schedule', 'cosine'), 700)
  net = 'unet(channels=16, multipliers=(1,), blocks=1, zero_init=False)'
  weights = weights_of(image_run(config(net=net), SHAPE, CLASSES, mesh))
  def x0_of(guide, clipped=False):
    run = image_run(config(guide=guide, clip_x0=clipped, net=net), SHAPE, CLASSES, mesh)
    return np.asarray(jax.jit(lambda weights: run.denoise(weights, cond)(x, level).x0)(weights))
  c, u, g = (x0_of(f'cfg({scale})') for scale in (1., 0., 3.))
  assert abs(c - u).max() > .01
  np.testing.assert_allclose(g, u + 3 * (c - u), atol=1e-4)
  np.testing.assert_allclose(x0_of('cfg(3.)', True), np.clip(g, -1, 1), atol=1e-5)
  thresholded = g / np.maximum(1, np.abs(g).max((1, 2, 3), keepdims=True))
  for guide, expected in (('cfg(3, lo=99) | rescale(0.)', c), ('cfg(3) | dynamic_threshold(1.)', thresholded)):
    np.testing.assert_allclose(x0_of(guide), expected, atol=1e-4)
  # At scale 0 there is nothing but the negative class.
  away = x0_of('cfg(0, negative=b)')
  np.testing.assert_allclose(away[1], c[1], atol=1e-4)
  assert abs(away[0] - c[0]).max() > .01


def test_the_negative_condition_keeps_tokens_that_are_known():
  c = config(guide='cfg(2, negative=b)', condition_dropout=.1)
  task = SimpleNamespace(takes=('classes',), classes=CLASSES, null=None, painted=None,
                         ask=ask_classes(dict(classes=CLASSES)))
  away = build._away(c, validate.check(c), task, np.zeros((1, 2), np.float32))
  known = np.full((3, 4, 1), -1)
  led = away(dict(cond=np.tile(np.float32([1, 0]), (3, 1)), known=known))
  assert led['known'] is known and np.array_equal(led['cond'], np.tile([0., 1.], (3, 1)))
  assert np.array_equal(away(np.tile(np.float32([1, 0]), (3, 1))), led['cond'])


def test_guidance_needs_conditions(mesh):
  with pytest.raises(InputError, match=r"config\.guide='cfg\(2\)'.*config\.guide=''"):
    image_run(config(guide='cfg(2)'), SHAPE, (), mesh)


def test_an_argument_may_be_called_name():
  with pytest.raises(InputError, match='nowhere'):
    build.make('data', "tfds(fashion_mnist, data_dir='/nowhere')")
  with pytest.raises(InputError, match="unknown argument 'name'"):
    build.make('net', 'unet(name=u)')


def test_nested_specs_are_schedules_themselves():
  table = build.make('schedule', 'zero_terminal(scaled_linear(T=50))')
  assert len(table.alpha) == 50 and table.alpha[-1] == 0
  shifted = build.make('schedule', 'shift(cosine(None), ratio=4)')
  assert shifted(.5).logsnr == pytest.approx(build.make('schedule', 'cosine(None)')(.5).logsnr - 2 * np.log(4))


def test_nested_samplers_get_the_schedule_and_the_grid_as_others_do(mesh):
  levels = grids.trailing(7)(schedules.cosine())
  for name in ('best', 'churn(churn=3)'):
    outer, inner = (build.make('sampler', spec, schedule=schedules.cosine(), levels=levels)
                    for spec in (f'mixed({name})', name))
    assert outer.on == 'mixed'
    for a, b in zip(jax.tree.leaves(outer.plan(levels)), jax.tree.leaves(inner.plan(levels)), strict=True):
      np.testing.assert_array_equal(a, b)


def test_a_self_conditioned_model_is_told_its_last_estimate(mesh):
  from diffusion import samplers
  net = 'unet(channels=16, multipliers=(1,), blocks=1, zero_init=False)'
  settings = config(self_condition=True, net=net, grid='trailing(3)', sampler='ddim', guide='cfg(2)')
  run = image_run(settings, SHAPE, CLASSES, mesh)
  cond, keys = np.eye(2, dtype=np.float32), samplers.sample_keys(0, np.arange(2))
  weights, x = weights_of(run), samplers.prior(keys, run.levels, SHAPE)
  sample = lambda sampler: np.asarray(jax.jit(
    lambda weights, x: samplers.sample(keys, run.denoise(weights, cond), sampler, run.levels, x))(weights, x))
  told = sample(samplers.self_conditioned(run.sampler))
  denoise = jax.jit(lambda *args: run.denoise(weights, cond)(*args))
  steps, here, estimate = samplers.steps(run.levels), x, np.zeros_like(x)
  for i in range(3):
    t, s = take(steps.t, i), take(steps.s, i)
    pred = jax.device_get(denoise(here, t, estimate))
    here, estimate = s.alpha * pred.x0 + s.sigma * pred.eps, pred.x0
  np.testing.assert_allclose(told, here, atol=1e-4)
  assert abs(told - sample(run.sampler)).max() > 1e-3
