"""Every kind of data through the whole program: loss, step, accumulation, checkpoint, resume, samples, load, export."""
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

import diffusion
from diffusion import commands
from diffusion.errors import InputError
from diffusion.generation import chain, export, sampling
from diffusion.setup import build
from diffusion.setup.choices import CHOICES
from diffusion.setup.config import default, tiny
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.training import loop, open_model
from diffusion.training.heldout import heldout_measurement
from diffusion.training.state import abstract_state, make_state
from tests import things

MB = 1_000_000
OWN = dict(tokens='discrete', mixed='mixed')  # objectives of kinds with tokens, whose samplers are their own


@pytest.fixture(autouse=True, scope='module')
def choices():
  with pytest.MonkeyPatch.context() as patch:
    for field, name, made in (('data', 'things', things.things), ('task', 'thing', things.thing),
                              ('net', 'any', things.AnyNet), ('objective', 'centre', things.centre)):
      patch.setitem(CHOICES[field], name, made)
    yield


def config(kind, **changes):
  c = tiny(default())
  conditional = kind in ('scalar', 'sequence', 'image', 'tokens')
  c.update(dict(
    data=f'things({kind})', task=f'thing({kind})', net='any', lr_schedule='constant(warmup=1)', batch=8, steps=4,
    guide='cfg(2)' if conditional else '', sampler='ddim', grid='trailing(4)', save_every=2, log_every=2, val_every=2,
    sample_every=2, extra_emas='power(.1)'))
  if kind == 'tree':
    c.update(dict(objective='centre', optimizer='adam | disc: sgd(0.)', grid=default().grid, guide=default().guide,
                  sampler=default().sampler))
  if kind in OWN:
    c.update(dict(objective=OWN[kind], sampler=default().sampler, schedule='log_linear(None)'))
  c.sample.update(dict(show='', num_samples=6, batch=4))
  c.evaluate.features = default().evaluate.features
  c.update(changes)
  return c


def flat_state(run, workdir):
  """All arrays of the newest checkpoint."""
  checkpoints = open_checkpoints(epath.Path(workdir) / 'checkpoints')
  return jax.device_get(checkpoints.restore(abstract_state(run)).state)


@pytest.fixture(scope='module', params=things.KINDS)
def trained(request, tmp_path_factory):
  """(kind, work directory) after four steps in two parts, of a batch accumulated from two."""
  workdir = epath.Path(tmp_path_factory.mktemp(request.param))
  commands.train(config(request.param, steps=2, grad_accumulation=2), workdir)
  commands.train(config(request.param, grad_accumulation=2), workdir)
  return request.param, workdir


def test_a_run_resumes_bit_for_bit_and_accumulation_changes_rounding_alone(trained, tmp_path):
  kind, workdir = trained
  runs = {}
  for accumulate in (2, 1):
    c = config(kind, grad_accumulation=accumulate)
    opened = open_model.open_run(c, tmp_path / str(accumulate), build.load_data(c))
    runs[accumulate] = opened.run
    state, step = make_state(opened.run, jax.random.key(c.seed)), loop.make_train_step(opened.run)
    frozen = open_model.placed_frozen(opened.run)
    for i in range(4):
      batch = loop.read_batch(opened.run.task.batch, opened.data.train, c.batch, c.seed, range(c.batch), i)
      state, metrics = step(state, sharding.put_batch(batch, opened.run.mesh), jax.random.key(c.seed), frozen=frozen)
    runs[accumulate] = jax.device_get(state)
    if accumulate == 2:
      jax.tree.map(np.testing.assert_array_equal, runs[2], flat_state(opened.run, workdir))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), runs[1], runs[2])
  if kind == 'tree':
    assert float(runs[1].memory['count']) == 32  # examples seen
    np.testing.assert_allclose(runs[1].params['disc'], .303)  # kept there after each update


@pytest.mark.parametrize('sampler', ['ddim', 'ddpm', 'dpmpp_2m'])
def test_samples_are_the_same_in_any_batch_and_lie_where_x0_does(trained, sampler):
  kind, workdir = trained
  changes = {} if kind in ('tree', *OWN) else dict(sampler=sampler)
  run, weights, step = diffusion.load(workdir, **changes)
  assert step == 4
  asked = run.task.ask({}, np.arange(5), 0)
  outputs, _ = sampling.make_draw(run, 3, 5)(weights, np.arange(5), asked.cond)
  few, _ = sampling.make_draw(run, 3, 2)(weights, np.arange(5), asked.cond)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), outputs, few)
  expected = dict(tree=(3,), mixed=(3,), molecule=(things.ROOM, 3)).get(kind, things.KINDS[kind])
  given = outputs['table']['numbers'] if kind == 'mixed' else outputs[run.task.gives]
  assert given.shape == (5, *expected) and np.isfinite(given).all()
  if kind in OWN:
    tokens = outputs['table']['categories'] if kind == 'mixed' else given
    assert np.all((tokens >= 0) & (tokens < (np.array(things.SIZES) if kind == 'mixed' else 5)))
  if kind == 'molecule':
    mask = asked.cond['x_mask']
    assert np.abs(outputs['atoms'] * (1 - mask)).max() == 0 and np.abs(outputs['atoms'].sum(1)).max() < 1e-5
    assert np.abs(outputs['atoms']).max() > .1


def test_an_export_draws_what_the_run_draws_with_given_weights_in_their_own_file(trained, tmp_path):
  kind, workdir = trained
  run, weights, _ = diffusion.load(workdir)
  export.write(run, weights, 4, tmp_path / 'export', {})
  files = {path.name for path in (tmp_path / 'export').iterdir()}
  assert ('frozen.safetensors' in files) == (kind in ('sequence', 'tree'))  # a table; what the objective remembers
  from safetensors.numpy import load_file
  read = lambda name: load_file(tmp_path / 'export' / name) if name in files else {}
  made = jax.export.deserialize((tmp_path / 'export' / 'sampler.stablehlo').read_bytes())
  ids = np.arange(2, dtype=np.int32)
  requests = {path: rows[ids % len(rows)] for path, rows in read('requests.safetensors').items()}
  drawn = made.call(read('weights.safetensors'), read('frozen.safetensors'), ids, np.uint32(3), requests)
  expected, _ = sampling.make_draw(run, 3, 2)(weights, ids, run.task.ask({}, ids, 0).cond)
  assert np.all(drawn.pop('finite'))
  if kind != 'molecule':  # a request there is a number of atoms, of which the export stores one
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), drawn, expected)
  assert biggest(made.mlir_module()) < MB


def test_it_is_evaluated_by_what_applies_and_its_metrics_have_their_own_names(trained):
  kind, workdir = trained
  run, *_ = open_model.open_run(open_model.filled(open_model.stored_meta(workdir)['config']), workdir)
  commands.evaluate(run.config, workdir)
  made = json.loads((max((workdir / 'evaluations').iterdir()) / 'evaluation.json').read_text())
  assert set(made['metrics']) == {'heldout_error'}
  what = dict(tree='distance to the centre', tokens='bound in nats per token', mixed='loss of an entry').get(
    kind, 'squared error of the output')
  assert made['protocol']['heldout_error']['what'] == what
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert all(('gap' in line) == (kind == 'tree') and ('mse' in line) == (kind not in ('tree', 'tokens')) and
             ('nats' in line) == (kind in OWN) for line in lines)


def biggest(text):
  """The bytes of the largest constant in the text of a StableHLO module."""
  sizes = [0]
  for shape, kind in re.findall(r'stablehlo\.constant dense<.*?> : tensor<((?:\d+x)*)([a-z]+\d*)>', text):
    bits = int(re.sub(r'\D', '', kind) or 8)
    sizes.append(int(np.prod([int(n) for n in shape.split('x') if n])) * bits // 8)
  return max(sizes)


def test_given_weights_are_arguments_and_never_constants_of_a_compiled_function(tmp_path):
  c = config('sequence')
  run, _, _, data = open_model.open_run(c, tmp_path, build.load_data(c))
  state, (batch, key, frozen) = abstract_state(run), loop.abstract_inputs(run, data.train)
  assert max(a.size * a.dtype.itemsize for a in jax.tree.leaves(frozen)) > MB
  weights = build.Weights(state.params, state.memory, frozen)
  cond = run.task.ask({}, np.arange(4), 0).cond
  held = jax.jit(lambda weights, batch, key: heldout_measurement(
    run, weights, key, *run.encode(weights.frozen, None, batch)))
  programs = [loop.make_train_step(run).lower(state, batch, key, frozen=frozen), held.lower(weights, batch, key),
              sampling.make_sample(run, 0).lower(weights, np.arange(4), cond, None)]
  for program in programs:
    assert biggest(program.as_text()) < MB
  held_by_closure = jax.tree.map(jnp.asarray, run.frozen)
  closed = jax.jit(lambda batch: run.encode(held_by_closure, None, batch)).lower(batch)  # what it would look like
  assert biggest(closed.as_text()) > MB


def test_other_given_weights_are_refused(tmp_path, monkeypatch):
  c = config('sequence', steps=2)
  commands.train(c, epath.Path(tmp_path))
  def other(*args, **options):
    task = things.thing(*args, **options)
    return task._replace(frozen=dict(table=task.frozen['table'] + 1))
  monkeypatch.setitem(CHOICES['task'], 'thing', lambda kind='vector', *, data=None, facts=None, fitted=None:
                      other(kind, data=data, facts=facts, fitted=fitted))
  with pytest.raises(InputError, match='other given weights.*task: '):
    diffusion.load(tmp_path)


def test_what_was_measured_on_the_data_is_kept_in_the_checkpoint(tmp_path):
  commands.train(config('vector', steps=2), epath.Path(tmp_path))
  values = things.things('vector').train.arrays['values']
  run, weights, _ = diffusion.load(tmp_path)
  np.testing.assert_array_equal(run.task.fitted['mean'], values.mean(0))
  batch = dict(values=values, labels=np.zeros(len(values), np.int32))
  x0, _ = run.encode(weights.frozen, None, batch)
  np.testing.assert_allclose(np.mean(x0, 0), 0, atol=1e-5)
  np.testing.assert_allclose(np.std(x0, 0), 1, rtol=1e-4)


# ---- parameters from another run, parts of them, several models in turn
def test_a_run_starts_from_the_parameters_of_another_and_trains_a_part_of_them(tmp_path, capsys):
  first, second = epath.Path(tmp_path) / 'first', epath.Path(tmp_path) / 'second'
  commands.train(config('vector', steps=2), first)
  before = diffusion.load(first, **{'sample.params': 'raw'}).weights.params
  commands.train(config('vector', steps=2, init_from=str(first), trainable='out/'), second)
  assert '4 of 4 parameters' in capsys.readouterr().out
  run, weights, _ = diffusion.load(second, **{'sample.params': 'raw'})
  after = weights.params
  jax.tree.map(np.testing.assert_array_equal, before['hidden'], after['hidden'])
  assert not np.array_equal(before['out']['kernel'], after['out']['kernel'])
  state = abstract_state(run)
  assert set(state.params) == set(state.ema) == {'out'} and set(state.base) == {'hidden'}
  assert not any(a.shape == (7, 16) for a in jax.tree.leaves(state.opt_state))  # no moments of what does not move
  commands.train(config('vector', steps=4, trainable='out/'), second)  # resumes
  np.testing.assert_array_equal(diffusion.load(second).weights.params['hidden']['kernel'], before['hidden']['kernel'])


@pytest.mark.parametrize('changes, message', [
  (dict(trainable='nothing'), "config.trainable='nothing' matches none"), (dict(trainable='.'), 'matches all'),
  (dict(trainable='('), 'not a regular expression'), (dict(init_from='nowhere'), 'no checkpoint'),
  (dict(optimizer='adam | disc: sgd'), 'names the groups'), (dict(optimizer='disc: sgd'), 'without a group'),
  (dict(task='image'), r"needs the column images, and config.data has values, labels"),
  (dict(objective='cenntre'), "did you mean 'centre'"), (dict(net='classifier'), 'belong together'),
  (dict(guide='cfg(2)'), 'needs conditions')])
def test_what_does_not_fit_is_refused_in_one_line(changes, message, tmp_path):
  with pytest.raises(InputError, match=message) as error:
    commands.train(config('vector', **changes), epath.Path(tmp_path))
  assert '\n' not in str(error.value)


def test_init_from_another_architecture_is_refused(tmp_path):
  commands.train(config('vector', steps=2), epath.Path(tmp_path) / 'first')
  c = config('tree', init_from=str(tmp_path / 'first'))
  with pytest.raises(InputError, match='another architecture'):
    commands.train(c, epath.Path(tmp_path) / 'second')


def test_other_facts_are_refused_by_name(tmp_path):
  commands.train(config('vector', steps=2), epath.Path(tmp_path))
  with pytest.raises(InputError, match="kind: scalar here, vector in the checkpoint"):
    commands.train(config('scalar', guide=''), epath.Path(tmp_path))


def test_a_model_without_noise_levels_refuses_their_settings_and_says_what_it_lacks(tmp_path):
  c = config('tree')
  for field, value in (('grid', 'trailing(7)'), ('schedule', 'linear'), ('guide', '')):
    with pytest.raises(InputError, match=f'config.{field}=.*has no noise levels'):
      commands.train(config('tree', **{field: value}), epath.Path(tmp_path))
  with pytest.raises(InputError, match="sampler='ddim' needs a model with 'denoise', and this one has draw"):
    commands.train(config('tree', sampler='ddim'), epath.Path(tmp_path))
  run, *_ = open_model.open_run(c, epath.Path(tmp_path), build.load_data(c))
  with pytest.raises(InputError, match="the objective centre has no log_prob .its model has draw.; really"):
    build.require(run, 'log_prob', '; really')


def continued(kind='vector', *, data=None, facts=None, fitted=None):
  """A task that takes the values of another model as its condition."""
  task = things.thing('scalar', data=data, facts=facts, fitted=fitted)
  def encode(frozen, key, batch):
    return batch['values'], batch['values'][:, None] + 0 * jax.nn.one_hot(batch['labels'], 2)
  def ask(request, ids, seed):
    return things.Asked(np.repeat(request['values'][:, None], 2, 1).astype(np.float32), None)
  return task._replace(encode=encode, ask=ask, takes=('values',), gives='values')


def test_models_draw_in_turn_and_only_if_one_takes_what_the_other_gives(tmp_path, monkeypatch):
  monkeypatch.setitem(CHOICES['task'], 'continued', continued)
  base, up = epath.Path(tmp_path) / 'base', epath.Path(tmp_path) / 'up'
  commands.train(config('scalar', steps=2), base)
  c = config('scalar', steps=2, task='continued', guide='', sample_every=100)
  c.sample.num_samples = 2
  opened = open_model.open_run(c, up, build.load_data(c))
  opened.checkpoints.save(2, make_state(opened.run, jax.random.key(1)), opened.meta)
  opened.checkpoints.close()
  models = [diffusion.load(base), diffusion.load(up, grid='trailing(2)')]
  parts = chain.draw(models, dict(classes='high'), 4, 7, 4)
  alone = diffusion.draw(models[0], 4, seed=7, classes='high')
  np.testing.assert_allclose(parts[0].outputs['values'], alone, rtol=1e-5)
  np.testing.assert_allclose(parts[1].asked.cond[:, 0], alone, rtol=1e-5)  # what the first has drawn
  draw = sampling.make_draw(models[1].run, chain.part_seed(7, 1), 4)
  own = draw(models[1].weights, np.arange(4), parts[1].asked.cond)
  np.testing.assert_allclose(diffusion.draw(models, 4, seed=7, classes='high'), own[0]['values'], rtol=1e-5)
  with pytest.raises(InputError, match='model 2 of the chain takes classes, class_mix, and the one before it gives'):
    diffusion.draw([models[0], models[0]._replace(run=models[0].run._replace(
      task=models[0].run.task._replace(gives='values')))], 4)
  c = open_model.filled(open_model.stored_meta(base)['config'])
  c.sample.then = f'{up} grid=trailing(2) sample.batch=3'
  commands.sample(c, base)
  folder = max((base / 'samples').iterdir())
  assert {path.name for path in folder.iterdir()} == {'part_1', 'part_2', 'record.json'}


@pytest.mark.parametrize('text, message', [
  ('prompt: a hero', "config.sample.prompt: config.task='thing.scalar.': unknown 'prompt'; valid: classes, class_mix"),
  ('low | classes: high', 'asked for twice')])
def test_a_request_that_the_task_does_not_take_is_refused(text, message, tmp_path):
  c = config('scalar')
  c.sample.ask = text
  with pytest.raises(InputError, match=message):
    commands.train(c, epath.Path(tmp_path))
