r"""Compiles the real train step and sampler for TPUs that are not here, and says what they need: memory, FLOPs, bytes, collectives, time.

  pip install 'diffusion-jax[tpu]'                                                              libtpu, on any Linux x86-64 machine
  python -m experiments.aot --config=configs/cifar10.py:pod --topology=v5e:16x16
  python -m experiments.aot --config=configs/imagenet64.py --topology=v5e:8x8 --config.grad_accumulation=4
  python -m experiments.aot --config=configs/cosine_ddim.py --topology=v5e:2x2 --chips=1 --shape=16,16,3 --classes=6 --programs=train
  python -m experiments.aot --table                    the rows of aot_table.py into experiments/reports/aot; a killed run goes on

Topologies: v5e:1x1 to v5e:16x16, v6e likewise, v5p:2x2x1 to v5p:16x16x24. A training step takes libtpu from five minutes (a few
blocks) to an hour (ADM's) of one core. No data are read: the shape and the number of classes come from the name of the data set, or from flags.

The time is that of a roofline: the longest of FLOPs over the chip's peak, bytes over its memory's bandwidth, and bytes sent over its
links. That is an estimate: arithmetic and links are lower bounds, as if all overlapped perfectly, but the bytes are XLA's count of what
its operations access, which may be more than is moved.
"""
import importlib.util
import json
import math
import os
import sys
import time

from absl import app, flags, logging
from etils import epath

from diffusion.errors import InputError
from diffusion.main import argument, parse_flags
from diffusion.setup.config import default
from diffusion.setup.specs import parse
from diffusion.system import platform
from diffusion.system.files import write_atomic
from experiments import hlo

CHIPS = {'v5e': 'TPU v5 lite', 'v5p': 'TPU v5', 'v6e': 'TPU v6 lite'}  # as topologies and as devices are called
DATA = {'cifar10': ((32, 32, 3), 10), 'imagenet_resized/32x32': ((32, 32, 3), 1000), 'imagenet_resized/64x64': ((64, 64, 3), 1000),
        'fashion_mnist': ((28, 28, 1), 10), 'mnist': ((28, 28, 1), 10), 'sprites': ((16, 16, 3), 6), 'digits': ((8, 8, 1), 10)}


# ---- what is compiled
def devices(topology, chips=0):
  """The devices of a TPU that need not be there; the first `chips` of them, or all.

  Raises:
    InputError: libtpu is not installed, or knows no such topology.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise InputError("compiling for TPUs needs libtpu, which is not installed: pip install 'diffusion-jax[tpu]'")
  # There is no TPU to ask about, nor one to guard by a lock.
  os.environ.update(dict(TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-4', TPU_WORKER_HOSTNAMES='localhost',
                         ALLOW_MULTIPLE_LIBTPU_LOAD='1') | os.environ)
  from jax.experimental import topologies
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  except Exception as error:  # of several types, by version
    raise InputError(f'--topology={topology}: {str(error).splitlines()[0]}; expected one such as v5e:4x4, v6e:16x16 or '
                     'v5p:4x4x4') from error
  if chips > len(found):
    raise InputError(f'--chips={chips}: {topology} has {len(found)}')
  return found[:chips or len(found)]


def accelerated(net):
  """The spec of a network whose layers take the forms for accelerators, although this process runs on a CPU."""
  name, _, kwargs = parse(net)
  return net if 'fast' in kwargs else f'{name}({(net.partition("(")[2].rpartition(")")[0] + ", fast=False").lstrip(", ")})'


def example(data, shape, classes):
  """(shape [H, W, C], number of classes) of the data that a spec names, where the flags do not say.

  Raises:
    InputError: nobody knows them.
  """
  name, args, kwargs = parse(data)
  name = (args or [kwargs.get('name', '')])[0] if name == 'tfds' else name
  known_shape, known_classes = DATA.get(name, (None, None))
  if known_shape and kwargs.get('size'):
    known_shape = (*[kwargs['size']] * 2, known_shape[2])
  shape, classes = shape or known_shape, known_classes if classes < 0 else classes
  if shape and len(shape) != 3:
    raise InputError(f'--shape={",".join(map(str, shape))}: expected height,width,channels, such as 32,32,3')
  if not shape or classes is None:
    raise InputError(f'config.data={data!r}: its pictures are not known here; give --shape=32,32,3 --classes=10 (0: without)')
  return tuple(shape), classes


def programs(run, config):
  """{name: (jitted function, its arguments as shapes with places, images that it makes or learns from, rounds of its loop)}."""
  import jax
  import numpy as np
  from diffusion.data.dataset import Dataset
  from diffusion.generation import sampling
  from diffusion.system import sharding
  from diffusion.training import loop
  from diffusion.training.state import abstract_state
  state = abstract_state(run)
  blank = Dataset(np.zeros((1, *run.shape), np.uint8), np.zeros(1, np.int32), run.classes)
  number = -(-config.sample.batch // run.mesh.size) * run.mesh.size
  placed = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(run.mesh))
  cond = placed((number, len(run.classes)), np.float32) if run.classes else None
  return dict(
    train=(loop.make_train_step(run), (state, *loop.abstract_batch(run, blank)), config.batch, config.grad_accumulation),
    sample=(sampling.make_sample(run, 0), (state.ema, placed((number,), np.int32), cond, None), number, len(run.levels.logsnr) - 1))


# ---- what it needs
def measure(config, topology, chips=0, shape=(), classes=-1, wanted=('train', 'sample'), say=print):
  """A record, as JSON takes it, of the programs of a config on a TPU.

  Args:
    config: of a run; its network takes the accelerators' forms.
    topology: 'v5e:4x4'. chips: how many of it are used; 0: all.
    shape, classes: of the data; () and -1: by their name.
    wanted: of 'train' and 'sample'.
    say: (label, text) -> None, is told on the way.
  """
  import jax
  from diffusion.setup import build
  from diffusion.system import flops as flop_counts, sharding
  from diffusion.training.state import abstract_state
  config.net = accelerated(config.net)
  shape, classes = example(config.data, shape, classes)
  mesh = sharding.make_mesh(config.fsdp, devices(topology, chips))
  sharding.check_batch('config.batch', config.batch, mesh, config.grad_accumulation)
  run = build.build(config, shape, tuple(map(str, range(classes))), mesh)
  state = abstract_state(run)
  sizes = {math.prod(a.shape) for a in jax.tree.leaves(state.params)}
  held = sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(state))
  record = dict(topology=topology, kind=mesh.devices.flat[0].device_kind, chips=mesh.size, fsdp=config.fsdp, accumulate=config.grad_accumulation,
                net=config.net, shape=shape, classes=classes, state_bytes=held,
                parameters=sum(a.size for a in jax.tree.leaves(state.params)),
                versions=dict(jax=jax.__version__, libtpu=_version()), programs={})
  for name in wanted:
    jitted, args, images, rounds = programs(run, config)[name]
    say(name, f'compiling for {mesh.size} chips of {topology} ..')
    record['programs'][name] = dict(images=images) | _program(jitted, args, mesh.size, flop_counts.PEAKS[record['kind']].memory, rounds, sizes)
  return record


def _version():
  from importlib import metadata
  return metadata.version('libtpu')


def _program(jitted, args, chips, there, rounds, sizes):
  """What one program needs; bytes and seconds are of one chip, `flops` of all."""
  from diffusion.system import flops as flop_counts
  record, start = dict(flops=flop_counts.flops(jitted, *args), there=there, rounds=rounds), time.monotonic()
  try:
    compiled = jitted.lower(*args).compile()
  except Exception as error:
    told = flop_counts.exhausted(str(error))
    if told is None:
      raise
    needed, limit = told
    return record | dict(fits=False, needed=needed, there=limit, compile_seconds=time.monotonic() - start)
  seconds, needed, xla = time.monotonic() - start, flop_counts.memory_needed(compiled), compiled.cost_analysis()
  found, memory = hlo.collectives(compiled.as_text()), compiled.memory_analysis()
  # XLA counts a loop's body once. Nearly all of either program is in its loop: times the rounds is right, or a little too much.
  bytes_moved, sent = xla['bytes accessed'] * rounds, sum(map(hlo.sent, found))
  strangers = hlo.not_parameters(found, sizes)
  return record | dict(
    fits=needed <= there, needed=needed, compile_seconds=seconds,
    arguments=memory.argument_size_in_bytes, temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes, peak=memory.peak_memory_in_bytes, xla_flops=xla['flops'], bytes=bytes_moved, sent=sent,
    collectives=hlo.summary(found), strangers=[[*one[:2], list(one[2]), one[3]] for one in strangers],
    unknown_loops=sum(one.times is None for one in found), roofline=roofline(record['flops'] / chips, bytes_moved, sent))


def roofline(flops, moved, sent):
  """{chip: seconds of each resource and the longest of them} of work of one chip: FLOPs, bytes moved in its memory, bytes sent."""
  from diffusion.system import flops as flop_counts
  rows = {}
  for name, kind in CHIPS.items():
    chip = flop_counts.PEAKS[kind]
    parts = dict(compute=flops / chip.bfloat16, memory=moved / chip.bandwidth, links=sent / chip.link)
    bound = max(parts, key=parts.get)
    rows[name] = parts | dict(seconds=parts[bound], bound=bound)
  return rows


# ---- what is said of it
def tell(record):
  """Lines for a reader."""
  size = lambda number: f'{number / 1e9:.2f} GB' if number >= 1e8 else f'{number / 1e6:.2f} MB'
  lines = [f'{record["chips"]} chips {record["kind"]} of {record["topology"]}, fsdp={record["fsdp"]}, accumulate={record["accumulate"]}; '
           f'{record["parameters"] / 1e6:.1f} million parameters, pictures {"x".join(map(str, record["shape"]))}; '
           f'state {size(record["state_bytes"])} a chip']
  for name, p in record['programs'].items():
    lines += [f'{name}: {p["images"]} pictures, compiled in {p["compile_seconds"]:.0f} s',
              f'  memory       {"fits" if p["fits"] else "DOES NOT FIT"}: {size(p["needed"])} of {size(p["there"])} a chip',
              f'  FLOPs        {p["flops"] / p["images"] / 1e9:.4g} G a picture, {p["flops"] / record["chips"] / 1e12:.4g} T a chip']
    if 'roofline' not in p:
      continue
    lines += [f'  bytes        {size(p["bytes"])} moved and {size(p["sent"])} sent by each chip']
    lines += [f'  {kind:<12} {count} times, {size(total)}' for kind, (count, total) in p['collectives'].items()]
    if p['strangers']:
      lines.append(f'  note         gathered and no parameter, or exchanged: {len(p["strangers"])} arrays')
    if p['unknown_loops']:
      lines.append(f'  note         {p["unknown_loops"]} collectives are in loops of unknown length and count once')
    for chip, r in p['roofline'].items():
      rate = p['images'] / r['seconds']
      parts = ', '.join(f'{part} {r[part] * 1e3:.3g}' for part in ('compute', 'memory', 'links'))
      lines.append(f'  {chip:<12} {r["seconds"] * 1e3:.4g} ms, bound by {r["bound"]} ({parts}): about {rate:,.0f} pictures/s, '
                   f'{rate / record["chips"]:,.1f} a chip')
  return '\n'.join(lines)


def main(argv):
  if argv[1:]:
    raise InputError(f'unexpected argument {argv[1]!r}; every setting is --config.NAME=VALUE')
  logging.set_verbosity(logging.ERROR)
  given = flags.FLAGS
  record = dict(config=argument(sys.argv, 'config')) | measure(
    given.config, given.topology, given.chips, tuple(map(int, given.shape)), given.classes, given.programs,
    lambda label, text: print(f'{label:<9} {text}', flush=True))
  print(tell(record))
  if given.out:
    write_atomic(epath.Path(given.out), json.dumps(record, indent=1).encode())


def define_flags():
  flags.DEFINE_string('topology', 'v5e:4x4', 'The TPU: v5e:16x16, v6e:8x8, v5p:4x4x4, ..')
  flags.DEFINE_integer('chips', 0, 'How many of its chips are used; 0: all.', lower_bound=0)
  flags.DEFINE_list('shape', [], 'Of the pictures: height,width,channels; by the name of the data set if not given.')
  flags.DEFINE_integer('classes', -1, 'Their number, 0 for none; by the name of the data set if not given.')
  flags.DEFINE_multi_enum('programs', ['train', 'sample'], ['train', 'sample'], 'Which are compiled.')
  flags.DEFINE_string('out', '', 'A file for the numbers, as JSON.')
  from ml_collections import config_flags
  if argument(sys.argv, 'config') is not None:
    config_flags.DEFINE_config_file('config', None, 'Recipe, such as configs/cifar10.py:pod.')
  elif any(word in sys.argv for word in ('--help', '-help', '--helpfull', '--helpshort', '-h', '-?')):
    config_flags.DEFINE_config_dict('config', default(), 'Recipe, such as configs/cifar10.py:pod.')
  else:
    raise InputError('give --config=configs/cifar10.py:pod, or --table (--help tells more)')


def cli():
  """The command line: bad input is one line on stderr and exit code 2."""
  os.environ['JAX_PLATFORMS'] = 'cpu'  # of this process; what it compiles is for TPUs all the same
  os.environ.pop('XLA_FLAGS', None)  # libtpu aborts at flags of other backends
  try:
    platform.start(1)
    import jax
    jax.config.update('jax_enable_compilation_cache', False)  # programs for absent TPUs are written to it and cannot be read
    if '--table' in sys.argv:
      from experiments import aot_table
      return aot_table.main([word for word in sys.argv[1:] if word != '--table'])
    define_flags()
    app.run(main, flags_parser=parse_flags)
  except (InputError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    sys.exit(130)


if __name__ == '__main__':
  cli()
