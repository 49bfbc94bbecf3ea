r"""Compiles the real train step and sampler for absent TPUs, and reports memory, FLOPs, bytes, collectives and time.

  pip install 'diffusion-jax[tpu]'                     libtpu, on any Linux x86-64 machine
  python -m experiments.aot --config=configs/cifar10.py:pod --topology=v5e:16x16
  python -m experiments.aot --config=configs/imagenet64.py --topology=v5e:8x8 --config.grad_accumulation=4
  python -m experiments.aot --config=configs/cosine_ddim.py --topology=v5e:2x2 --chips=1 --shape=16,16,3 --classes=6 \
    --programs=train
  python -m experiments.aot --table                    the rows of aot_table.py, into experiments/reports/aot; resumes

Topologies: v5e:1x1 to v5e:16x16, the same for v6e, and v5p:2x2x1 to v5p:16x16x24. cpu:8 needs no libtpu: eight devices
of this machine's processor, whose compiler lays out memory in another way; arguments are what they are on a TPU.
Compiling a training step takes libtpu from five minutes (a few blocks) to an hour (ADM) on one core. No data are read:
the shape and the number of classes follow from the name of the data set, or are given by flags.

The time is a roofline estimate: the longest of FLOPs over the chip's peak, bytes over its memory bandwidth, and bytes
sent over its link bandwidth. Compute and links are lower bounds, as if everything overlapped perfectly; the bytes are
XLA's count of what operations access, which may exceed the bytes moved.
"""
import importlib.util
import json
import math
import os
import sys
import time

from absl import app, flags, logging

from diffusion.errors import InputError
from diffusion.main import argument, parse_flags
from diffusion.setup.config import default
from diffusion.setup.specs import parse
from diffusion.system import platform
from diffusion.system.files import user_path, writable, write_atomic
from experiments import hlo

CHIPS = {'v5e': 'TPU v5 lite', 'v5p': 'TPU v5', 'v6e': 'TPU v6 lite'}  # name in topologies: device kind
DATA = {'cifar10': ((32, 32, 3), 10), 'imagenet_resized/32x32': ((32, 32, 3), 1000),
        'imagenet_resized/64x64': ((64, 64, 3), 1000), 'fashion_mnist': ((28, 28, 1), 10),
        'mnist': ((28, 28, 1), 10), 'sprites': ((16, 16, 3), 6), 'digits': ((8, 8, 1), 10)}


# ---- what is compiled
def devices(topology, chips=0):
  """The first `chips` devices of a TPU that need not be present; all of them if 0.

  Raises:
    InputError: libtpu is not installed or does not know the topology.
  """
  if topology.startswith('cpu:'):
    import jax
    if f'cpu:{jax.device_count()}' != topology:
      raise InputError(f'--topology={topology}: expected a number of devices such as cpu:8')
    return jax.devices()[:chips or None]
  if importlib.util.find_spec('libtpu') is None:
    raise InputError("compiling for TPUs needs libtpu, which is not installed: pip install 'diffusion-jax[tpu]'; "
                     '--topology=cpu:8 compiles for as many devices of this processor instead')
  # There is no TPU whose metadata could be queried, or that a lock would have to guard.
  os.environ.update(dict(TPU_SKIP_MDS_QUERY='1', TPU_ACCELERATOR_TYPE='v5litepod-4', TPU_WORKER_HOSTNAMES='localhost',
                         ALLOW_MULTIPLE_LIBTPU_LOAD='1') | os.environ)
  from jax.experimental import topologies
  try:
    known = topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  except Exception as error:  # its type depends on the version
    raise InputError(f'--topology={topology}: {str(error).splitlines()[0]}; expected one such as v5e:4x4, '
                     'v6e:16x16 or v5p:4x4x4') from error
  if chips > len(known):
    raise InputError(f'--chips={chips}: {topology} has {len(known)}')
  return known[:chips or len(known)]


def accelerated(net):
  """The spec of a network with the accelerator form of its layers, although this process runs on a CPU."""
  from diffusion.nets import NETS  # jax: not before the platform is chosen
  name, args, kwargs = parse(net)
  inside = kwargs.get('net', args[0] if args else '')
  if name == 'with_text':
    return net.replace(inside, accelerated(inside), 1)
  arguments = net.partition('(')[2].rpartition(')')[0]
  chooses = name in NETS and 'fast' in NETS[name].__dataclass_fields__
  return net if 'fast' in kwargs or not chooses else f'{name}({(arguments + ", fast=False").lstrip(", ")})'


def example(data, shape, classes):
  """(shape [H, W, C], number of classes) of the data named by a spec, unless given (shape not (), classes >= 0).

  Raises:
    InputError: neither given nor known.
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
    raise InputError(f'config.data={data!r}: the shape and classes are not known; '
                     'give --shape=32,32,3 --classes=10 (0: unconditional)')
  return tuple(shape), classes


def programs(run, config):
  """{name: (jitted function, abstract arguments with shardings, images per call, iterations of its loop)}; 'sample'
  where the objective draws on a grid."""
  import jax
  import numpy as np
  from diffusion.data.arrays import image_dataset
  from diffusion.generation import sampling
  from diffusion.setup.build import Weights
  from diffusion.system import sharding
  from diffusion.training import loop
  from diffusion.training.state import abstract_state
  state = abstract_state(run)
  blank = run.task.prepare((), image_dataset(np.zeros((1, *run.shape), np.uint8), np.zeros(1, np.int32), run.classes,
                                             ['']))
  number = -(-config.sample.batch // run.mesh.size) * run.mesh.size
  placed = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.batch_sharding(run.mesh))
  cond = jax.tree.map(lambda a: placed((number, *a.shape[1:]), a.dtype), run.example[1])
  train = loop.make_train_step(run), (state, *loop.abstract_inputs(run, blank)), config.batch, config.grad_accumulation
  if run.levels is None:
    return dict(train=train)
  return dict(train=train, sample=(
    sampling.make_sample(run, 0), (Weights(state.ema), placed((number,), np.int32), cond, None), number,
    len(run.levels.logsnr) - 1))


# ---- what it needs
def measure(config, topology, chips=0, shape=(), classes=-1, names=('train', 'sample'), report=print):
  """The costs of the programs of a config on a TPU, as a JSON record.

  Args:
    config: of a run; its network takes the accelerator form.
    topology: such as 'v5e:4x4'. chips: how many of its chips are used; 0: all.
    shape, classes: of the data; () and -1: looked up by its name.
    names: a subset of 'train' and 'sample'; what the objective lacks is left out.
    report: (label, text) -> None, called with progress messages.
  """
  import jax
  from diffusion.system import flops, sharding
  from diffusion.training.state import abstract_state
  from experiments.image_run import image_run
  config.net = accelerated(config.net)
  shape, classes = example(config.data, shape, classes)
  mesh = sharding.make_mesh(config.fsdp, devices(topology, chips))
  sharding.check_batch('config.batch', config.batch, mesh, config.grad_accumulation)
  run = image_run(config, shape, tuple(map(str, range(classes))), mesh)
  state = abstract_state(run)
  sizes = {math.prod(a.shape) for a in jax.tree.leaves(state.params)}
  held = sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(state))
  kind = mesh.devices.flat[0].device_kind
  chip = flops.PEAKS.get(kind, flops.PEAKS[CHIPS['v5e']])  # of a CPU: whether it would fit into a v5e
  record = dict(topology=topology, kind=kind, chips=mesh.size, fsdp=config.fsdp, accumulate=config.grad_accumulation,
                net=config.net, shape=shape, classes=classes, state_bytes=held,
                parameters=sum(a.size for a in jax.tree.leaves(state.params)),
                versions=dict(jax=jax.__version__, libtpu=_version()), programs={})
  known = programs(run, config)
  for name in [name for name in names if name in known]:
    jitted, args, images, rounds = known[name]
    report(name, f'compiling for {mesh.size} chips of {topology} ..')
    costs = _program(jitted, args, mesh.size, chip.memory, rounds, sizes)
    record['programs'][name] = dict(images=images) | costs
  return record


def _version():
  from importlib import metadata
  return metadata.version('libtpu') if importlib.util.find_spec('libtpu') else 'none'


def _program(jitted, args, chips, available, rounds, sizes):
  """The costs of one program; bytes and seconds are per chip, `flops` of all chips together."""
  from diffusion.system import flops
  record, start = dict(flops=flops.flops(jitted, *args), there=available, rounds=rounds), time.monotonic()
  try:
    compiled = jitted.lower(*args).compile()
  except Exception as error:
    exhausted = flops.exhausted(str(error))
    if exhausted is None:
      raise
    needed, limit = exhausted
    return record | dict(fits=False, needed=needed, there=limit, compile_seconds=time.monotonic() - start)
  seconds, needed, xla = time.monotonic() - start, flops.memory_needed(compiled), compiled.cost_analysis()
  collectives, memory = hlo.collectives(compiled.as_text()), compiled.memory_analysis()
  # XLA counts the body of a loop once. Nearly all of either program is in its loop, so that multiplying by its rounds
  # is right, or a slight overestimate.
  bytes_moved, sent = xla['bytes accessed'] * rounds, sum(map(hlo.sent, collectives))
  strangers = hlo.not_parameters(collectives, sizes)
  return record | dict(
    fits=needed <= available, needed=needed, compile_seconds=seconds,
    arguments=memory.argument_size_in_bytes, temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes, peak=memory.peak_memory_in_bytes, xla_flops=xla['flops'],
    bytes=bytes_moved, sent=sent, collectives=hlo.summary(collectives),
    strangers=[[*one[:2], list(one[2]), one[3]] for one in strangers],
    unknown_loops=sum(one.times is None for one in collectives),
    roofline=roofline(record['flops'] / chips, bytes_moved, sent))


def roofline(work, moved, sent):
  """{chip: seconds of each resource, and the longest} of one chip's work: FLOPs, bytes moved in memory, bytes sent."""
  from diffusion.system import flops
  rows = {}
  for name, kind in CHIPS.items():
    chip = flops.PEAKS[kind]
    parts = dict(compute=work / chip.bfloat16, memory=moved / chip.bandwidth, links=sent / chip.link)
    bound = max(parts, key=parts.get)
    rows[name] = parts | dict(seconds=parts[bound], bound=bound)
  return rows


# ---- output
def tell(record):
  """The record as text."""
  size = lambda number: f'{number / 1e9:.2f} GB' if number >= 1e8 else f'{number / 1e6:.2f} MB'
  chips = record['chips']
  lines = [f'{chips} chips {record["kind"]} of {record["topology"]}, fsdp={record["fsdp"]}, '
           f'grad_accumulation={record["accumulate"]}; {record["parameters"] / 1e6:.1f} million parameters, '
           f'images {"x".join(map(str, record["shape"]))}; state {size(record["state_bytes"])} per chip']
  for name, p in record['programs'].items():
    fits = 'fits' if p['fits'] else 'DOES NOT FIT'
    lines += [f'{name}: {p["images"]} images, compiled in {p["compile_seconds"]:.0f} s',
              f'  memory       {fits}: {size(p["needed"])} of {size(p["there"])} per chip',
              f'  FLOPs        {p["flops"] / p["images"] / 1e9:.4g} G per image, '
              f'{p["flops"] / chips / 1e12:.4g} T per chip']
    if 'roofline' not in p:
      continue
    lines += [f'  bytes        {size(p["bytes"])} moved and {size(p["sent"])} sent by each chip']
    lines += [f'  {kind:<12} {count} times, {size(total)}' for kind, (count, total) in p['collectives'].items()]
    if p['strangers']:
      lines.append(f'  note         {len(p["strangers"])} arrays are gathered that are not parameters, or exchanged')
    if p['unknown_loops']:
      lines.append(f'  note         {p["unknown_loops"]} collectives are in loops of unknown length and count once')
    for chip, r in p['roofline'].items():
      rate = p['images'] / r['seconds']
      parts = ', '.join(f'{part} {r[part] * 1e3:.3g}' for part in ('compute', 'memory', 'links'))
      lines.append(f'  {chip:<12} {r["seconds"] * 1e3:.4g} ms, bound by {r["bound"]} ({parts}): about '
                   f'{rate:,.0f} images/s, {rate / chips:,.1f} per chip')
  return '\n'.join(lines)


def main(argv):
  if argv[1:]:
    raise InputError(f'unexpected argument {argv[1]!r}; every setting is --config.NAME=VALUE')
  logging.set_verbosity(logging.ERROR)
  options = flags.FLAGS
  out = options.out and user_path(options.out)
  if out:
    writable(out.parent)
  record = dict(config=argument(sys.argv, 'config')) | measure(
    options.config, options.topology, options.chips, tuple(map(int, options.shape)), options.classes, options.programs,
    lambda label, text: print(f'{label:<9} {text}', flush=True))
  print(tell(record))
  if out:
    write_atomic(out, json.dumps(record, indent=1).encode())


def define_flags():
  flags.DEFINE_string('topology', 'v5e:4x4', 'The TPU: v5e:16x16, v6e:8x8, v5p:4x4x4, ..')
  flags.DEFINE_integer('chips', 0, 'How many of its chips are used; 0: all.', lower_bound=0)
  flags.DEFINE_list('shape', [], 'height,width,channels of the images; default: by the name of the data set.')
  flags.DEFINE_integer('classes', -1, 'Number of classes, 0 for none; default: by the name of the data set.')
  flags.DEFINE_multi_enum('programs', ['train', 'sample'], ['train', 'sample'], 'Which are compiled.')
  flags.DEFINE_string('out', '', 'A file for the numbers, as JSON.')
  from ml_collections import config_flags
  if argument(sys.argv, 'config') is not None:
    config_flags.DEFINE_config_file('config', None, 'Recipe, such as configs/cifar10.py:pod.')
  elif any(word in sys.argv for word in ('--help', '-help', '--helpfull', '--helpshort', '-h', '-?')):
    config_flags.DEFINE_config_dict('config', default(), 'Recipe, such as configs/cifar10.py:pod.')
  else:
    raise InputError('give --config=configs/cifar10.py:pod, or --table (see --help)')


def cli():
  """The command line: bad input is one line on stderr and exit code 2."""
  os.environ['JAX_PLATFORMS'] = 'cpu'  # for this process, although it compiles for TPUs
  name, _, number = (argument(sys.argv, 'topology') or '').partition(':')
  on_cpu = name == 'cpu' and number.isdecimal()
  if not on_cpu:
    os.environ.pop('XLA_FLAGS', None)  # libtpu aborts on flags of other backends
  try:
    platform.start(max(int(number), 1) if on_cpu else 1)
    import jax
    # Programs for absent TPUs would be written to the cache but could not be read from it.
    jax.config.update('jax_enable_compilation_cache', False)
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
