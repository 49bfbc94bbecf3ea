"""Starting from the parameters of another run (config.init_from)."""
import jax

from diffusion.errors import InputError
from diffusion.setup import build
from diffusion.setup.config import filled
from diffusion.setup.choices import make
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.checksums import flat
from diffusion.system.files import user_path
from diffusion.training.open_model import open_at, split_step
from diffusion.training.record import record_of
from diffusion.training.state import restore_state

SHOWN = 8  # parameters that are listed


def start_from(run, state, report):
  """The state at step 0 with the parameters and averages of config.init_from, by path and shape, where they fit.

  Args:
    run: the Experiment.
    state: its state at step 0.
    report: (label, text) -> None; receives what did not fit.
  Raises:
    InputError: there is no checkpoint, or nothing fits.
  """
  if not run.config.init_from:
    return state
  names = [name for name, _ in run.averages]
  old, old_names, step = _restored(run)
  trees = {'params': state.params, 'ema': state.ema, 'base': state.base}
  trees |= {name: tree for name, tree in zip(names, state.averages)}
  donors = {'params': old.params, 'ema': old.ema, 'base': old.params}
  donors |= {name: dict(zip(old_names, old.averages)).get(name, old.ema) for name in names}
  found, new = {}, {}
  for name, tree in trees.items():
    source = flat(donors[name]) | (flat(old.base) if old.base else {})
    new[name] = _taken(tree, source, found if name in ('params', 'base') else {})
  taken = [path for path, fits in found.items() if fits]
  if not taken:
    raise InputError(f'config.init_from={run.config.init_from!r}: none of its parameters has a name and a shape of '
                     f'this network, such as {next(iter(found))}; it holds another architecture')
  left = [path for path, fits in found.items() if not fits]
  more = f' and {len(left) - SHOWN} more' if len(left) > SHOWN else ''
  report('start', f'{len(taken)} of {len(found)} parameters of {run.config.init_from}, step {step}' +
         (f'; new: {", ".join(left[:SHOWN])}{more}' if left else ''))
  return state._replace(params=new['params'], ema=new['ema'], base=new['base'],
                        averages=tuple(new[name] for name in names))


def _taken(tree, source, found):
  """The tree with the arrays of source {path: array} where path and shape agree; notes in found whether they did."""
  leaves, structure = jax.tree.flatten(tree)
  for i, path in enumerate(flat(tree)):
    other = source.get(path)
    found[path] = other is not None and other.shape == leaves[i].shape
    if found[path]:
      leaves[i] = sharding.put(sharding.fetch(other).astype(leaves[i].dtype), leaves[i].sharding)
  return jax.tree.unflatten(structure, leaves)


def _restored(run):
  """(state, names of its averages, step) of 'WORKDIR' or 'WORKDIR@STEP'."""
  where = run.config.init_from
  workdir, step = split_step(where, 'config.init_from')
  checkpoints = open_checkpoints(user_path(workdir) / 'checkpoints')
  newest = checkpoints.latest_meta()
  if newest is None:
    raise InputError(f'config.init_from={where!r}: there is no checkpoint')
  config, record = filled(newest[1]['config']), record_of(newest[1])
  task = make('task', config.task, facts=record.facts, fitted=record.fitted, open_model=open_at)
  other = build.build(config, task, record.example, run.mesh, open_model=open_at)
  restored = restore_state(other, checkpoints, step)
  return restored.state, [name for name, _ in other.averages], restored.step
