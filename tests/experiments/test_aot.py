"""The costs of compiled programs: collectives from real and handwritten HLO, the roofline, a compile for a TPU."""
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from diffusion.errors import InputError
from diffusion.setup.config import default, tiny
from diffusion.system import flops
from experiments import aot, aot_table, hlo
from experiments.image_run import image_run, params_of
from experiments.sweep import sweep_file

ROOT = Path(__file__).parents[2]
PROGRAM = '''
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from experiments import hlo
mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ('data', 'fsdp'))

def inside(x):  # [8, 16] on each device
  def turn(x, _):
    return jax.lax.psum(x, 'data') / 2, None
  x, _ = jax.lax.scan(turn, x, length=5)
  x = x + jax.lax.ppermute(x, 'data', [(0, 1), (1, 0)])
  y = jax.lax.all_gather(x, ('data', 'fsdp'), axis=0, tiled=True)  # [32, 16]
  z = jax.lax.psum_scatter(y, 'fsdp', tiled=True)                  # [16, 16]
  return jax.lax.all_to_all(z, ('data', 'fsdp'), 0, 0, tiled=True)

def text(f, *args):
  return jax.jit(f).lower(*args).compile().as_text()

mapped = jax.shard_map(inside, mesh=mesh, in_specs=P(('data', 'fsdp')), out_specs=P(('data', 'fsdp')), check_vma=False)
split = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))

def layer(w, x):  # a kernel divided over fsdp, a batch over both
  return jnp.sum(jax.nn.relu(jax.lax.with_sharding_constraint(x @ w, NamedSharding(mesh, P(('data', 'fsdp'))))) ** 2)

found = hlo.collectives(text(mapped, jax.ShapeDtypeStruct((32, 16), jnp.float32)))
gathered = hlo.collectives(text(jax.grad(layer), split((24, 40), None, 'fsdp'), split((64, 24), ('data', 'fsdp'))))
rest = hlo.not_parameters(gathered, {24 * 40}), len(hlo.not_parameters(gathered, {1}))
print(json.dumps([[one._asdict() for one in found], [one._asdict() for one in gathered], *rest]))
'''


@pytest.fixture(scope='module')
def compiled():
  flags = os.environ['XLA_FLAGS'] + ' --xla_force_host_platform_device_count=4'
  env = dict(os.environ, XLA_FLAGS=flags, JAX_PLATFORMS='cpu')
  words = [sys.executable, '-c', PROGRAM]
  done = subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def test_collectives_of_a_real_program(compiled):
  found = {one['kind']: (one['bytes'], one['group'], one['times']) for one in compiled[0]}
  piece = 4 * 8 * 16
  assert found == {'all-reduce': (piece, 2, 5), 'collective-permute': (piece, 4, 1), 'all-gather': (4 * piece, 4, 1),
                   'reduce-scatter': (4 * piece, 2, 1), 'all-to-all': (2 * piece, 4, 1)}


def test_under_fsdp_a_layer_gathers_its_kernel_and_not_its_batch(compiled):
  _, gathered, strangers, others = compiled
  assert strangers == [] and others >= 1
  reduced = [one['bytes'] for one in gathered if one['kind'] in ('all-reduce', 'reduce-scatter')]
  assert 4 * 24 * 40 in reduced  # the gradient


HAND = '''HloModule jit_step, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%body (s: (s32[], bf16[4,128])) -> (s32[], bf16[4,128]) {
  %s = (s32[]{:T(128)}, bf16[4,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %v = bf16[4,128]{1,0:T(8,128)(2,1)} get-tuple-element(%s), index=1
  %all-reduce.1 = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} all-reduce(%v), replica_groups=mesh['a'=2,'b'=4] {'b'}, \
to_apply=%add, metadata={op_name="jit(step)/while/body/psum"}
  ROOT %t = (s32[], bf16[4,128]) tuple(%i, %all-reduce.1)
}

%condition (s: (s32[], bf16[4,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(250)
  %s.1 = (s32[], bf16[4,128]) parameter(0)
  %i = s32[] get-tuple-element(%s.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%endless (s: (s32[], bf16[4,128])) -> pred[] {
  %s.2 = (s32[], bf16[4,128]) parameter(0)
  ROOT %go = pred[] custom-call(%s.2)
}

%all-reduce-scatter.3 (p: f32[64,32]) -> f32[8,32] {
  %p = f32[64,32]{1,0} parameter(0)
  %all-reduce.2 = f32[64,32]{1,0} all-reduce(%p), replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %ds = f32[8,32]{1,0} dynamic-slice(%all-reduce.2, %here, %zero), dynamic_slice_sizes={8,32}
}

%send (p: f32[16]) -> f32[128] {
  %q = f32[16]{0} parameter(0)
  ROOT %all-gather.9 = f32[128]{0} all-gather(%q), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

ENTRY %main (a: f32[16], b: f32[64,32]) -> f32[128] {
  %a = f32[16]{0} parameter(0)
  %b = f32[64,32]{1,0} parameter(1)
  %loop = (s32[], bf16[4,128]) while(%start), condition=%condition, body=%body
  %forever = (s32[], bf16[4,128]) while(%start), condition=%endless, body=%body
  %noted = (s32[], bf16[4,128]) while(%start), condition=%endless, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %fused = f32[8,32]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
  %pair = (f32[16]{0}, bf16[2,8]{1,0}, /*index=2*/f32[]{:T(128)}) all-reduce-start(%a, %c, %d), \
replica_groups={{0,2},{1,3}}, to_apply=%add
  %pair-done = (f32[16]{0}, bf16[2,8]{1,0}, f32[]) all-reduce-done(%pair)
  %ag = ((f32[16]{0}, f32[4,8]{1,0}), (f32[128]{0}, f32[32,8]{1,0})) all-gather-start(%a, %e), replica_groups={}, \
dimensions={0}
  %cp = (f32[16]{0:T(128)}, f32[16]{0:T(128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), \
source_target_pairs={{0,1}}
  ROOT %late = f32[128]{0} async-start(%a), calls=%send
}
'''


def test_collectives_in_handwritten_tpu_text():
  found = hlo.collectives(HAND)
  small = 2 * 4 * 128
  assert [(one.kind, one.bytes, one.group, one.times) for one in found] == [
    ('all-reduce', small, 4, 250), ('all-reduce', small, 4, None), ('all-reduce', small, 4, 3),
    ('reduce-scatter', 4 * 64 * 32, 8, 1), ('all-reduce', 4 * 16 + 2 * 16 + 4, 2, 1),
    ('all-gather', 4 * 128 + 4 * 256, 8, 1), ('collective-permute', 4 * 16, 8, 1), ('all-gather', 4 * 128, 8, 1)]
  assert found[0].source == 'jit(step)/while/body/psum'
  assert hlo.summary(found)['all-reduce'] == (250 + 1 + 3 + 1, 254 * small + 100)
  assert [hlo.sent(one) for one in found] == [
    250 * 2 * .75 * small, 2 * .75 * small, 3 * 2 * .75 * small, .875 * 8192, 100, .875 * 1536, 64, .875 * 512]
  assert [(kind, shape) for kind, _, shape, _ in hlo.not_parameters(found, {256})] == [
    ('all-gather', (128,)), ('collective-permute', (16,)), ('all-gather', (128,))]


def test_roofline_is_the_slowest_of_three():
  chip = flops.PEAKS['TPU v5 lite']
  for bound, work in (('compute', (2 * chip.bfloat16, 1, 1)), ('memory', (1, 2 * chip.bandwidth, 1)),
                      ('links', (1, 1, 2 * chip.link))):
    row = aot.roofline(*work)['v5e']
    assert row['bound'] == bound and row['seconds'] == row[bound] == 2


def test_layers_take_the_accelerators_forms():
  for spec, expected in (('unet', 'unet(fast=False)'), ('unet()', 'unet(fast=False)'),
                         ('unet(channels=8)', 'unet(channels=8, fast=False)'),
                         ('unet(8, attention=(4,))', 'unet(8, attention=(4,), fast=False)'),
                         ('unet(fast=True)', 'unet(fast=True)'), ('clip(width=64)', 'clip(width=64)'),
                         ('with_text(unet(8), width=4)', 'with_text(unet(8, fast=False), width=4)')):
    assert aot.accelerated(spec) == expected


def test_the_shape_of_data_is_known_by_name_or_given():
  assert aot.example('tfds(imagenet_resized/64x64, stream=True)', (), -1) == ((64, 64, 3), 1000)
  assert aot.example('sprites(size=32)', (), -1) == ((32, 32, 3), 6)
  assert aot.example('folder(/my/images)', (8, 8, 1), 0) == ((8, 8, 1), 0)
  assert aot.example('tfds(cifar10)', (), 0) == ((32, 32, 3), 0)
  with pytest.raises(InputError, match='give --shape'):
    aot.example('folder(/my/images)', (), -1)
  with pytest.raises(InputError, match='--shape=8: expected'):
    aot.example('tfds(cifar10)', (8,), 0)


def test_help_needs_no_recipe_and_a_row_does():
  def ask(*words):
    words = [sys.executable, '-m', 'experiments.aot', *words]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
  done = ask('--help')
  assert '--topology' in done.stdout and 'error' not in done.stderr
  done = ask()
  assert done.returncode == 2 and 'give --config' in done.stderr and len(done.stderr.splitlines()) == 1


def test_rows_that_sample_a_recipe_say_how_many_images():
  for what, words in aot_table.ROWS.values():
    if '`:pod`' in what and '--programs=train' not in words:
      recipe = re.search(r'configs/(\w+)\.py', words[0]).group(1)
      own = importlib.import_module(f'configs.{recipe}').get_config('pod').sample.batch
      batch = dict(word.split('=') for word in words).get('--config.sample.batch', own)
      assert f' {batch} images at a time' in what


def test_without_libtpu_it_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr(aot.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='pip install') as caught:
    aot.devices('v5e:2x2')
  assert '\n' not in str(caught.value)


def test_devices_of_this_processor_in_place_of_a_tpu():
  config = tiny(default())
  config.net = 'unet(channels=8, multipliers=(1,), blocks=1, attention=(), groups=2)'
  record = aot.measure(config, 'cpu:1', shape=(8, 8, 1), classes=2, names=['train'], report=lambda label, text: None)
  found = record['programs']['train']
  assert (record['kind'], record['chips'], found['fits']) == ('cpu', 1, True)
  four = 4 * 4 * record['parameters']  # the parameters, their averages, and two moments, in float32
  assert four < record['state_bytes'] < four + 100
  assert record['state_bytes'] < found['arguments'] < found['needed']
  assert 'fits' in aot.tell(record)
  with pytest.raises(InputError, match='cpu:7: expected a number of devices'):
    aot.devices('cpu:7')


def test_towers_of_a_clip_are_trained_and_draw_nothing():
  config = sweep_file.recipe_config('configs/clip.py:tiny')
  record = aot.measure(config, 'cpu:1', shape=(8, 8, 3), classes=0, report=lambda label, text: None)
  assert list(record['programs']) == ['train'] and record['programs']['train']['images'] == config.batch
  towers = image_run(config, (8, 8, 3))
  assert record['parameters'] == sum(a.size for a in jax.tree.leaves(params_of(towers)))


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (the extra tpu)')
def test_a_step_for_an_absent_tpu(tmp_path):
  net = 'unet(channels=8, multipliers=(1,), blocks=1, attention=(), groups=2)'
  def command(*words):  # a process of its own: libtpu aborts on the XLA flags of this one
    words = ['--config=configs/cosine_ddim.py:tiny', f'--config.net={net}', '--shape=8,8,1', '--classes=2',
             '--programs=train', f'--out={tmp_path}/row.json', *words]
    env = dict(os.environ, DIFFUSION_CACHE=str(tmp_path))
    return subprocess.run([sys.executable, '-m', 'experiments.aot', *words], cwd=ROOT, capture_output=True, text=True,
                          timeout=500, env=env)
  done = command('--topology=v5e:2x2')
  assert done.returncode == 0, done.stderr
  record = json.loads((tmp_path / 'row.json').read_text())
  found, gradient = record['programs']['train'], 4 * record['parameters']
  assert record['kind'] == 'TPU v5 lite' and record['chips'] == 4 and found['fits']
  assert 'memory       fits' in done.stdout
  assert gradient <= found['collectives']['all-reduce'][1] < 1.1 * gradient + 1000  # plus the metrics
  assert 'all-to-all' not in found['collectives']
  assert 4 * gradient < found['needed'] < 2 ** 30
  done = command('--topology=v5e:7')
  assert done.returncode == 2 and '--topology=v5e:7' in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def row(fits=True, images=64):
  program = dict(images=images, flops=images * 10 ** 12, there=16e9, needed=2e9 if fits else 20e9, fits=fits,
                 compile_seconds=1.)
  details = dict(bytes=8.19e9, sent=4e6, collectives={'all-reduce': [2, 2e6]}, unknown_loops=0,
                 strangers=[['all-gather', 'f32', [64], 'x']],
                 roofline=aot.roofline(images * 10 ** 12 / 4, 8.19e9, 4e6))
  return dict(config='c', topology='v5e:2x2', kind='TPU v5 lite', chips=4, fsdp=1, accumulate=1, net='unet',
              shape=[8, 8, 1], classes=2, parameters=10 ** 6, state_bytes=16e6, versions=dict(jax='1', libtpu='2'),
              programs=dict(train=program | (details if fits else {})))


def test_the_table_keeps_its_rows_and_reports_those_that_exist(tmp_path, monkeypatch):
  asked = []
  def process(words, **options):  # of one row; the second does not fit, the third breaks
    asked.append(words)
    if len(asked) < 3:
      aot_table.write_atomic(words[-1].removeprefix('--out='), json.dumps(row(fits=len(asked) == 1)).encode())
    return subprocess.CompletedProcess(words, len(asked) == 3, 'done', 'error: broken\n')
  monkeypatch.setattr(aot_table.subprocess, 'run', process)
  names = list(aot_table.SCALING[:3])
  aot_table.main([f'--out={tmp_path}', '--only', *names])
  aot_table.main([f'--out={tmp_path}', '--only', *names[:2]])  # both exist
  assert len(asked) == 3 and all(aot_table.ROWS[name][1] == words[3:-1] for name, words in zip(names, asked))
  lines = [line for line in (tmp_path / 'report.md').read_text().splitlines() if '| train |' in line]
  # 64 images in the longest of 16e12/197e12 = 81 ms of arithmetic, 10 ms of memory and 20 us of links.
  assert len(lines) == 2 and '| 81.2, compute | 788 | 197.0 |' in lines[0] and 'does not fit' in lines[1]
  assert (tmp_path / 'aot.png').read_bytes()[:4] == b'\x89PNG'


def test_a_row_as_text():
  text = aot.tell(row())
  assert 'fits: 2.00 GB of 16.00 GB' in text and 'about 788 images/s, 197.0 per chip' in text and '1 arrays' in text
  assert 'DOES NOT FIT: 20.00 GB of 16.00 GB' in aot.tell(row(fits=False))
