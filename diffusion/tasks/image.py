"""Images, unconditional or conditioned on a class or context vector."""
import jax
import jax.numpy as jnp
import numpy as np

from diffusion.data.arrays import from_unit, images_batch, to_unit
from diffusion.errors import InputError
from diffusion.system.files import write_npz
from diffusion.tasks import augment as augmentation, pages
from diffusion.tasks.base import need, Task
from diffusion.tasks.classes import ask_classes, class_facts, TAKES


def image(flip=False, augment=0., *, data=None, facts=None):
  """x0: images in [-1, 1]; the condition: None, or a vector with one entry per class.

  Args:
    flip: whether to mirror a random half of the training images left to right.
    augment: probability of each transformation of augment.py, of which the network is told; 0: none.
  """
  if isinstance(augment, bool) or not isinstance(augment, (int, float)) or not 0 <= augment <= 1:
    raise InputError(f'augment={augment!r}: expected a probability from 0 to 1, such as .12')
  if data is not None:
    need(data, 'images')
    facts = dict(shape=list(data.arrays['images'].shape[1:]), **class_facts(data))
  facts = facts or {}
  classes = tuple(facts.get('classes', ()))

  def encode(frozen, key, batch):
    x0 = to_unit(batch['images'])
    if flip and key is not None:
      x0 = augmentation.mirror(key, x0)
    if augment and key is not None:  # samples are drawn, and losses measured, without the entry, which means zeros
      x0, told = augmentation.augment(jax.random.fold_in(key, 1), x0, augment)
      return x0, dict(augment=told) | ({'cond': batch['cond']} if 'cond' in batch else {})
    return x0, batch.get('cond')

  def show(outputs, labels, title):
    return pages.grid(outputs['images'], labels=labels, title=title)

  def save(folder, outputs, cond, labels):
    """samples.npz: images uint8 [N, H, W, C]; with conditions also labels [N, K] and classes. No pickles."""
    more = {} if cond is None else dict(labels=cond, classes=np.array(classes))
    write_npz(folder / 'samples.npz', outputs | more)

  return Task(
    images_batch, encode, null=_null, decode=lambda frozen, x0, cond: dict(images=from_unit(x0)),
    ask=ask_classes(facts), show=show, save=save, facts=facts, tiles=lambda outputs: outputs['images'], takes=TAKES,
    gives='images', bounds=(-1., 1.), levels=256, evaluators=('loss', 'samples', 'bound', 'ode'))


def _null(cond):
  """No class; what was done to an image is told in any case."""
  zeros = jax.tree.map(jnp.zeros_like, cond)
  return zeros | dict(augment=cond['augment']) if isinstance(cond, dict) else zeros
