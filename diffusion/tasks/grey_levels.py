"""Images whose values are tokens: a few levels of brightness, each a value of its own for discrete diffusion."""
import jax.numpy as jnp
import numpy as np

from diffusion.data.arrays import images_batch
from diffusion.errors import InputError
from diffusion.system.files import write_npz
from diffusion.tasks import pages
from diffusion.tasks.base import need, Task
from diffusion.tasks.classes import ask_classes, class_facts, TAKES
from diffusion.tasks.words import unasked


def grey_levels(levels=17, *, data=None, facts=None):
  """x0: tokens int32 [H, W, C], the brightness of each channel in `levels` equal steps; condition: None, or a class.

  Args:
    levels: 2 to 256; images are rounded to them.
  """
  if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= 256:
    raise InputError(f'levels={levels!r}: expected a whole number from 2 to 256')
  if data is not None:
    need(data, 'images')
    facts = dict(shape=list(data.arrays['images'].shape[1:]), levels=levels, **class_facts(data))
  facts = facts or {}
  step = 255 / (levels - 1)

  def encode(frozen, key, batch):
    return jnp.round(batch['images'] / step).astype(jnp.int32), batch.get('cond')

  def decode(frozen, x0, cond):
    brightness = jnp.where(x0 < levels, jnp.round(x0 * step), 128)  # a mask is grey
    return dict(images=brightness.astype(jnp.uint8))

  def save(folder, outputs, cond, labels):
    """samples.npz: images uint8 [N, H, W, C]; with conditions also labels [N, K] and classes."""
    classes = np.array(facts.get('classes', ()))
    vectors = cond.get('cond') if isinstance(cond, dict) else cond
    write_npz(folder / 'samples.npz', outputs | ({} if vectors is None else dict(labels=vectors, classes=classes)))

  return Task(
    images_batch, encode, null=unasked, decode=decode, ask=ask_classes(facts), save=save,
    show=lambda outputs, labels, title: pages.grid(outputs['images'], labels=labels, title=title), facts=facts,
    tiles=lambda outputs: outputs['images'], takes=TAKES, gives='images', categories=levels,
    evaluators=('loss', 'nelbo', 'samples'))
