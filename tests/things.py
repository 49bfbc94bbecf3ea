"""Kinds of data that are no images, each as small as it can be, with what a config needs to train on them."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from diffusion.data.dataset import Dataset, Source, take
from diffusion.data.ragged import ragged
from diffusion.objectives.base import Model, Objective
from diffusion.system.files import write_npz
from diffusion.tasks.base import Asked, need, Task
from diffusion.tasks.classes import ask_classes, TAKES

N, ROOM = 48, 5  # examples; atoms at most
KINDS = dict(scalar=(), vector=(6,), sequence=(8, 1), molecule=(ROOM, 3), image=(4, 4, 2), tree=None, tokens=(5, 1),
             mixed=None)
SIZES = (4, 3)  # values of each of the two kinds


# ---- data
def columns(kind):
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 2, N).astype(np.int32)
  if kind == 'molecule':
    atoms = [rng.normal(size=(size, 3)).astype(np.float32) for size in rng.integers(2, ROOM + 1, N)]
    return dict(atoms=ragged(atoms))
  if kind in ('tree', 'mixed'):
    return dict(numbers=rng.normal(size=(N, 3)).astype(np.float32), kinds=rng.integers(0, 3, (N, 2)).astype(np.int32))
  if kind == 'tokens':
    values = rng.integers(0, 3, (N, 5, 1)) + 2 * labels[:, None, None]
    return dict(values=values.astype(np.int32), labels=labels)
  values = rng.normal(2. * labels.reshape(-1, *[1] * len(KINDS[kind])), 1, (N, *KINDS[kind])).astype(np.float32)
  more = dict(texts=np.array([f'text {i}' for i in labels], np.dtypes.StringDType())) if kind == 'sequence' else {}
  return dict(values=values, labels=labels) | more


def things(kind='vector'):
  data = Dataset(columns(kind), {} if kind in ('molecule', 'tree', 'mixed') else dict(classes=('low', 'high')))
  return Source(take(data, slice(16, None)), take(data, slice(16)))


# ---- tasks
def thing(kind='vector', *, data=None, facts=None, fitted=None):
  """The task of a kind of data: a condition for each role, fitted statistics, and given weights for `sequence`."""
  if data is not None:
    need(data, *[name for name in ('values', 'atoms', 'numbers') if name in columns(kind)])
    facts = dict(kind=kind, classes=list(data.facts.get('classes', ())))
    if kind == 'vector' and fitted is None:
      fitted = dict(mean=data.arrays['values'].mean(0), scale=data.arrays['values'].std(0))
  facts = facts or dict(classes=[])
  make = dict(molecule=_molecule, tree=_tree, tokens=_tokens, mixed=_mixed).get(kind, _values)
  return make(kind, facts, fitted or {})


def _show(outputs, labels, title):
  return Image.new('RGB', (8, 8))


def _save(folder, outputs, cond, labels):
  write_npz(folder / 'samples.npz', outputs)


def _values(kind, facts, fitted):
  """scalar: class vectors; vector: no condition, standardised; sequence: tokens, looked up in a given table; image: a
  dict of a class vector and tokens."""
  table = np.random.default_rng(1).normal(size=(512, 640)).astype(np.float32)  # 1.3 MB
  mean, scale = fitted.get('mean', np.float32(0)), fitted.get('scale', np.float32(1))

  def batch(data, indices):
    return dict(values=data.arrays['values'][indices], labels=data.arrays['labels'][indices])

  def condition(frozen, labels):
    vector = jax.nn.one_hot(labels, 2)
    tokens = jnp.stack([labels, labels + 1], 1)
    context = dict(context=jnp.tanh(frozen['table'][tokens])) if frozen else None
    return dict(scalar=vector, vector=None, sequence=context, image=dict(cond=vector, tokens=tokens))[kind]

  def encode(frozen, key, batch):
    return (batch['values'] - mean) / scale, condition(frozen, batch['labels'])

  def ask(request, ids, seed):
    named = request.get('classes')
    index = np.full(len(ids), ['low', 'high'].index(named)) if named else np.asarray(ids) % 2
    cond = jax.device_get(condition(dict(table=table), jnp.asarray(index)))
    return Asked(cond, [facts['classes'][i] for i in index])

  return Task(
    batch, encode, null=lambda cond: jax.tree.map(jnp.zeros_like, cond),
    decode=lambda frozen, x0, cond: dict(values=x0 * scale + mean), ask=ask, show=_show, save=_save, facts=facts,
    fitted=fitted, frozen=dict(table=table) if kind == 'sequence' else (), takes=TAKES, gives='values',
    evaluators=('loss',))


def _molecule(kind, facts, fitted):
  def project(x, cond):
    mask = cond['x_mask']
    centre = jnp.sum(x * mask, 1, keepdims=True) / jnp.sum(mask, 1, keepdims=True)
    return (x - centre) * mask

  def batch(data, indices):
    atoms, mask = data.arrays['atoms'][indices].padded(ROOM)
    return dict(atoms=atoms, mask=mask[..., None].astype(np.float32))

  def encode(frozen, key, batch):
    cond = dict(x_mask=batch['mask'])
    return project(batch['atoms'], cond), cond

  def ask(request, ids, seed):
    sizes = [np.random.default_rng((seed, int(i))).integers(2, ROOM + 1) for i in ids]
    mask = (np.arange(ROOM) < np.array(sizes)[:, None])[..., None].astype(np.float32)
    return Asked(dict(x_mask=mask), [f'{size} atoms' for size in sizes])

  return Task(batch, encode, null=lambda cond: cond, ask=ask,
              decode=lambda frozen, x0, cond: dict(atoms=x0, mask=cond['x_mask']),
              show=_show, save=_save, facts=facts, gives='atoms', project=project, evaluators=('loss',))


def _tree(kind, facts, fitted):
  def batch(data, indices):
    return {name: data.arrays[name][indices] for name in ('numbers', 'kinds')}

  def encode(frozen, key, batch):
    return dict(numbers=batch['numbers'], kinds=jax.nn.one_hot(batch['kinds'], 4)), None

  def decode(frozen, x0, cond):
    return dict(numbers=x0['numbers'], kinds=jnp.argmax(x0['kinds'], -1))

  return Task(batch, encode, null=lambda cond: cond, decode=decode, ask=ask_classes({}), show=_show, save=_save,
              facts=facts, gives='numbers', evaluators=('loss',))


def _tokens(kind, facts, fitted):
  def batch(data, indices):
    return dict(values=data.arrays['values'][indices], labels=data.arrays['labels'][indices])

  return Task(batch, lambda frozen, key, batch: (batch['values'], jax.nn.one_hot(batch['labels'], 2)),
              null=lambda cond: jax.tree.map(jnp.zeros_like, cond), decode=lambda frozen, x0, cond: dict(values=x0),
              ask=ask_classes(facts), show=_show, save=_save, facts=facts, takes=TAKES, gives='values', categories=5,
              evaluators=('loss',))


def _mixed(kind, facts, fitted):
  def encode(frozen, key, batch):
    return dict(numbers=batch['numbers'], categories=batch['kinds']), None

  def decode(frozen, x0, cond):
    return dict(table=x0)

  batch = lambda data, indices: {name: data.arrays[name][indices] for name in ('numbers', 'kinds')}
  return Task(batch, encode, null=lambda cond: cond, decode=decode, ask=ask_classes({}), show=_show,
              save=lambda folder, outputs, cond, labels: _save(folder, outputs['table'], cond, labels), facts=facts,
              gives='table', categories=SIZES, evaluators=('loss',))


# ---- a network for any x0 and any condition
class AnyNet(nn.Module):
  """Two dense layers over everything that it is given."""
  out_channels: int | None = None

  @nn.compact
  def __call__(self, x, time, cond=None, train=False):
    flat = lambda a: a.reshape(a.shape[0], int(np.prod(a.shape[1:])))  # the batch may be of unknown size
    known = [flat(x), jnp.cos(time[:, None] / 300.)]
    for i, leaf in enumerate(jax.tree.leaves(cond)):
      leaf = nn.Embed(600, 4, name=f'embed_{i}')(leaf) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf
      known.append(flat(leaf))
    hidden = nn.tanh(nn.Dense(16, name='hidden')(jnp.concatenate(known, -1)))
    shape = (*x.shape[1:-1], self.out_channels or x.shape[-1]) if x.ndim > 1 else ()
    return nn.Dense(int(np.prod(shape)), name='out')(hidden).reshape(x.shape[0], *shape)


# ---- an objective with memory, two groups of parameters and its own way to draw
def centre(*, example):
  """The centre of the data by gradient descent, beside a second group, whose sum is pulled to 1 and kept below .606."""
  def init(key):
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape[1:]), example[0])
    return dict(centre=zeros, disc=jnp.ones(2) * .3), dict(count=jnp.zeros(()))

  def loss(key, params, x0, cond, *, memory, part=None, **unused):
    rows = (lambda a: a.reshape(a.shape[0] // part[1], part[1], *a.shape[1:])[:, part[0]]) if part else lambda a: a
    gaps = jax.tree.map(lambda a, c: jnp.mean(jnp.square(rows(a) - c).reshape(rows(a).shape[0], -1), 1), x0,
                        params['centre'])
    each = sum(jax.tree.leaves(gaps))
    return jnp.mean(each) + (jnp.sum(params['disc']) - 1) ** 2, dict(gap=each, remembered=memory['count'])

  def model(params, memory, frozen):
    def draw(keys, cond, shape):
      noise = lambda i, c: jax.vmap(lambda key: .1 * jax.random.normal(jax.random.fold_in(key, i), c.shape))(keys)
      leaves, tree = jax.tree.flatten(params['centre'])
      return jax.tree.unflatten(tree, [c + noise(i, c) for i, c in enumerate(leaves)])
    return Model(draw=draw)

  return Objective('centre', init, loss, model, ('gap', 'distance to the centre'),
                   remember=lambda memory, metrics: dict(count=memory['count'] + len(metrics['gap'])),
                   after=lambda params, step: params | dict(disc=jnp.minimum(params['disc'], .303)),
                   group=lambda path: 'disc' if path.startswith('disc') else '')
