"""Pairs of an image and a caption, for two towers that learn to find each other's half."""
from functools import partial

import numpy as np

from diffusion.errors import InputError
from diffusion.tasks.text_to_image import text_to_image


def pairs(tokens='words', length=0, vocabulary='', flip=False, *, data=None, facts=None, fitted=None):
  """As text_to_image, whose data and arguments it has; the condition says besides which captions are equal.

  x0: images in [-1, 1]; the condition: tokens int32 [B, L], weights float32 [B, L], 0 for padding, and same int32 [B],
  equal for equal captions.

  Raises:
    InputError: all captions are equal.
  """
  task = text_to_image(tokens, length, vocabulary, flip, data=data, facts=facts, fitted=fitted)
  if data is not None:
    captions = np.unique(np.asarray(data.arrays['captions'][:]))
    if len(captions) < 2 <= len(data.arrays['captions']):
      raise InputError(f'all {len(data.arrays["captions"])} captions are {str(captions[0])[:60]!r}: nothing tells the '
                       'pairs apart; use data with different captions')
  return task._replace(prepare=partial(_prepare, task.prepare), takes=('prompt',),
                       evaluators=('loss', 'retrieval', 'zero_shot'))


def _prepare(tokenized, frozen, data):
  """The Dataset with the columns of text_to_image and same, int32 [N, captions of an image]."""
  data = tokenized(frozen, data)
  captions = np.asarray(data.arrays['captions'][:])
  _, same = np.unique(captions.ravel(), return_inverse=True)
  return data._replace(arrays=data.arrays | dict(same=same.reshape(data.arrays['counts'].shape).astype(np.int32)))
