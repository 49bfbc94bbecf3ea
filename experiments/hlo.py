"""The collectives of a compiled program, read from its HLO text: what devices exchange, how often, how many bytes."""
import math
import re
from typing import NamedTuple

BYTES = dict(token=0, pred=1, s4=.5, u4=.5, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8,
             f64=8, c64=8, c128=16)  # others, such as f8e4m3fn: 1
KINDS = 'all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute|collective-broadcast'

_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{$')
_COLLECTIVE = re.compile(rf' = (?P<type>.*?) (?P<kind>{KINDS})(?P<start>-start)?\(')
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,]*)\]')
_CALLED = re.compile(r'(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.-]+)')
_BRANCHES = re.compile(r'branch_computations=\{([^}]*)\}')


class Collective(NamedTuple):
  """One instruction.

  kind: 'all-reduce', 'all-gather', 'reduce-scatter', ..
  arrays: ((dtype, (dimensions)), ..), whole: the operands of a reduction, or the result of a gather.
  bytes: of all arrays.
  group: number of devices that take part together.
  times: executions per step; None in a loop of unknown length.
  source: the operation of the program it belongs to, as named by jax.
  """
  kind: str
  arrays: tuple
  bytes: float
  group: int
  times: int | None
  source: str


def collectives(text):
  """All collectives reachable from the entry of an HLO module, through calls, branches and loops.

  Args:
    text: compiled.as_text(), of any backend.
  """
  entry, computations = _computations(text)
  number = re.search(r'num_partitions=(\d+)', text)
  devices, results = int(number.group(1)) if number else 1, []

  def walk(name, times):
    for line in computations.get(name, ()):
      one = _COLLECTIVE.search(line)
      if one:
        results.append(_collective(one, line, name, devices, times))
      if ' while(' in line:
        rounds = _rounds(line, computations)
        walk(re.search(r'body=%?([\w.-]+)', line).group(1), None if None in (rounds, times) else rounds * times)
        continue
      branches = _BRANCHES.search(line)
      for called in _CALLED.findall(line) + (re.findall(r'[\w.-]+', branches.group(1)) if branches else []):
        walk(called, times)
  walk(entry, 1)
  return results


def sent(collective):
  """Bytes sent by each device with the best algorithm on a ring; a loop of unknown length counts once."""
  share = (collective.group - 1) / collective.group
  rounds = {'all-reduce': 2 * share, 'collective-permute': 1, 'collective-broadcast': 1}.get(collective.kind, share)
  return rounds * collective.bytes * (collective.times or 1)


def summary(collectives):
  """{kind: (number per step, bytes per step)}."""
  rows = {}
  for one in collectives:
    count, size = rows.get(one.kind, (0, 0))
    rows[one.kind] = count + (one.times or 1), size + one.bytes * (one.times or 1)
  return rows


def not_parameters(collectives, sizes):
  """Transfers other than those of parameters and gradients: activations, or small arrays.

  These are the all-gathers of arrays with the size of no parameter, and every all-to-all and collective-permute, in
  which a chip exchanges its piece for another's: their arrays are pieces, which do not reveal the size of the whole.

  Args:
    collectives: from the function of that name.
    sizes: numbers of elements of the parameters.
  Returns:
    [(kind, dtype, dimensions, source)].
  """
  kinds = ('all-gather', 'all-to-all', 'ragged-all-to-all', 'collective-permute')
  moved = [one for one in collectives if one.kind in kinds]
  return [(one.kind, dtype, shape, one.source) for one in moved for dtype, shape in one.arrays
          if one.kind != 'all-gather' or math.prod(shape) not in sizes]


def _computations(text):
  """(name of the entry, {name: lines})."""
  entry, computations, lines = None, {}, []
  for line in text.splitlines():
    head = _COMPUTATION.match(line)
    if head:
      lines = computations[head.group(2)] = []
      entry = head.group(2) if head.group(1) else entry
    else:
      lines.append(line)
  return entry, computations


def _collective(one, line, computation, devices, times):
  kind, group = one['kind'], _group(line, devices)
  if kind == 'all-reduce' and 'all-reduce-scatter' in computation:
    kind = 'reduce-scatter'  # a TPU fusion: it reduces, and each device keeps its part
  types = _ARRAY.findall(_plain(one['type']))
  arrays = [(dtype, tuple(int(d) for d in dims.split(',') if d)) for dtype, dims in types]
  if one['start'] and kind != 'all-reduce':  # its type lists the operands, then the results, then perhaps counters
    arrays = [a for a in arrays if a != ('u32', ())]
    arrays = arrays[len(arrays) // 2:]
  if kind == 'reduce-scatter' and one['kind'] == kind:
    # Which dimension is divided does not matter: only the size counts.
    arrays = [(dtype, (shape[0] * group, *shape[1:])) for dtype, shape in arrays]
  source = re.search(r'op_name="([^"]*)"', line)
  size = sum(BYTES.get(dtype, 1) * math.prod(shape) for dtype, shape in arrays)
  return Collective(kind, tuple(arrays), size, group, times, source.group(1) if source else '')


def _plain(text):
  """A type without layouts or comments: 'f32[8,4]{1,0:T(8,128)}' -> 'f32[8,4]'."""
  return re.sub(r'\{[^}]*\}|/\*.*?\*/', '', text)


def _group(line, devices):
  """Number of devices in a group, from any of the three notations of replica_groups in HLO."""
  if one := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
    return len(one.group(1).split(','))
  if one := re.search(r'replica_groups=\[([\d,]+)\]<=', line):
    return int(one.group(1).split(',')[-1])
  if one := re.search(r'replica_groups=@?mesh\[([^\]]*)\] ?\{([^}]*)\}', line):
    axes = dict(re.findall(r"'([^']+)'=(\d+)", one.group(1)))
    return math.prod(int(axes[name]) for name in re.findall(r"'([^']+)'", one.group(2)))
  return devices


def _rounds(line, computations):
  """Iterations of a while loop: as noted by the compiler, or the one constant in its condition; None: unknown."""
  if noted := re.search(r'known_trip_count[^\d}]*(\d+)', line):
    return int(noted.group(1))
  condition = computations.get(re.search(r'condition=%?([\w.-]+)', line).group(1), ())
  limits = [int(n) for text in condition for n in re.findall(r' = [su]\d+\[\]\S* constant\((\d+)\)', text)]
  return limits[0] if len(limits) == 1 and any('direction=LT' in text for text in condition) else None
