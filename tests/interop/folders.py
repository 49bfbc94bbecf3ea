"""Tiny models of the other library with random weights, written by it; and ours beside them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest


def torch_of():
  pytest.importorskip('diffusers', reason='parity needs diffusers and torch: pip install -e .[compare]')
  return pytest.importorskip('torch')


def randomised(model, seed=0):
  """The model with weights of which no bias is 0 and no norm 1, in float32, without dropout."""
  torch = torch_of()
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, a in model.named_parameters():
      size = a[0].numel() if a.ndim > 1 else 0
      if size:
        a.copy_(torch.randn(a.shape, generator=generator) / size ** .5)
      else:
        one = 1. if name.endswith('weight') else 0.
        a.copy_(one + .3 * torch.randn(a.shape, generator=generator))
  return model.eval().float()


def to_torch(tree):
  """Arrays [B, H, W, C] as tensors [B, C, H, W]; others as they are."""
  torch = torch_of()
  def one(a):
    a = np.asarray(a)
    return torch.tensor(np.moveaxis(a, -1, 1).copy() if a.ndim == 4 else a)
  return jax.tree.map(one, tree)


def from_torch(a):
  a = a.detach().numpy()
  return np.moveaxis(a, 1, -1) if a.ndim == 4 else a


def same_outputs_and_gradients(model, params, apply, call, arrays, tolerance=1e-4):
  """Outputs, and gradients with respect to the arrays and to all parameters, to a share of the largest value.

  Args:
    model: theirs.   params: ours, by the same names.
    apply: (params, *arrays) -> ours.   call: (*tensors) -> theirs.
    arrays: float inputs, NumPy.
  """
  torch = torch_of()
  tensors = [t.requires_grad_() for t in to_torch(arrays)]
  out = call(*tensors)
  weights = np.random.default_rng(9).normal(size=from_torch(out).shape).astype(np.float32)
  (out * to_torch(weights)).sum().backward()
  def scalar(params, *arrays):
    y = apply(params, *arrays)
    return jnp.sum(y * weights), y
  (_, ours), grads = jax.jit(jax.value_and_grad(scalar, tuple(range(len(arrays) + 1)), has_aux=True))(params, *arrays)
  close(ours, from_torch(out), tolerance, 'output')
  for i, (a, t) in enumerate(zip(grads[1:], tensors)):
    close(a, from_torch(t.grad), tolerance, f'gradient of input {i}')
  theirs = {name.removeprefix('vision_model.'): a for name, a in model.named_parameters() if a.grad is not None}
  missing = set(theirs) ^ set(grads[0])
  assert not missing, missing
  largest = max(float(a.grad.abs().max()) for a in theirs.values())
  for name, a in theirs.items():  # that of a key's bias is 0 up to rounding
    close(np.asarray(grads[0][name]).reshape(a.shape), a.grad.numpy(), tolerance, f'gradient of {name}', 1e-2 * largest)


def close(a, b, tolerance, what, least=1e-6):
  scale = max(np.abs(b).max(), least)
  assert np.abs(np.asarray(a) - b).max() <= tolerance * scale, (what, np.abs(np.asarray(a) - b).max(), scale)


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
