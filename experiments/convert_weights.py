r"""Converts PyTorch weights (.pth) to .safetensors, which diffusion reads: named tensors, and nothing executable.

  python -m experiments.convert_weights pt_inception-2015-12-05-6726825d.pth fid.safetensors
  python -m diffusion.main --mode=evaluate --workdir=runs/x --config.evaluate.features='inception(fid.safetensors)'

A .pth file is a pickle, and a pickle can contain a program. It is read here with torch.load(weights_only=True), which
accepts tensors and refuses everything else. PyTorch appends the first eight digits of their SHA-256 to the names of
such files; if present, they are checked. The usual InceptionV3 weights are pt_inception-2015-12-05-6726825d.pth of
github.com/mseitzer/pytorch-fid, or the same file under another name from github.com/toshas/torch-fidelity. DINOv2 and
CLIP need no conversion: Hugging Face provides them as model.safetensors.
"""
import argparse
import hashlib
import io
import re
import sys
from pathlib import Path

import safetensors.numpy

from diffusion.errors import InputError
from diffusion.system.files import user_path, write_atomic
from diffusion.system.tensors import not_finite


def state_dict(data, name):
  """{name: float32 array} from the bytes of a .pth file.

  Raises:
    InputError: torch is not installed; the file is not a PyTorch file, or holds more than named tensors.
  """
  try:
    import torch
  except ImportError as error:
    raise InputError(f'{name}: reading it needs PyTorch, which is not installed; pip install torch, or convert on '
                     'another machine') from error
  try:
    content = torch.load(io.BytesIO(data), map_location='cpu', weights_only=True)
  except Exception as error:  # pickle, zip and torch each have their own
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(f'{name}: refused, nothing of it was run: not a PyTorch file that holds only tensors, '
                     f'or incomplete ({first})') from error
  if isinstance(content, dict) and isinstance(content.get('state_dict'), dict):
    content = content['state_dict']
  tensor = lambda key, value: isinstance(key, str) and isinstance(value, torch.Tensor)
  if not isinstance(content, dict) or not content or not all(tensor(*item) for item in content.items()):
    raise InputError(f'{name}: expected a dictionary of named tensors, found {type(content).__name__}')
  return {key: value.float().numpy().copy(order='C') for key, value in content.items()
          if not key.endswith('num_batches_tracked')}


def convert(source, target):
  """Writes the tensors of a .pth to a .safetensors; returns (number of tensors, SHA-256 of source, SHA-256 of target).

  Raises:
    InputError: the source cannot be read, does not match its name, or holds more than tensors; the target cannot be
      written.
  """
  target = Path(user_path(target))
  if target.suffix != '.safetensors':
    raise InputError(f'{target}: expected a name ending in .safetensors')
  try:
    data = user_path(source).read_bytes()
  except OSError as error:
    raise InputError(f'{source} cannot be read ({error.strerror})') from error
  digest, expected = hashlib.sha256(data).hexdigest(), re.search(r'-([0-9a-f]{8})\.\w+$', Path(source).name)
  if expected and not digest.startswith(expected[1]):
    raise InputError(f'{source}: its SHA-256 should begin with {expected[1]} as its name says, but is {digest} '
                     f'({len(data)} bytes): damaged or another file; download it again')
  tensors = state_dict(data, source)
  bad = not_finite(tensors)
  if bad:
    raise InputError(f'{source}: {bad[0]} has values that are not finite')
  written = safetensors.numpy.save(tensors, metadata=dict(source_sha256=digest))
  write_atomic(target, written)
  return len(tensors), digest, hashlib.sha256(written).hexdigest()


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('source', metavar='IN.pth')
  parser.add_argument('target', metavar='OUT.safetensors')
  options = parser.parse_args()
  try:
    count, before, after = convert(options.source, options.target)
  except InputError as error:
    sys.exit(f'error: {error}')
  print(f'{options.source}: {count} tensors, SHA-256 {before}\n{options.target}: SHA-256 {after}')


if __name__ == '__main__':
  main()
