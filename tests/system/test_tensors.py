"""Weights files: what is refused and with which message, and the conversion of .pth files without running code."""
import hashlib
import io
import pickle
import sys
import zipfile

import jax
import numpy as np
import pytest
import safetensors.numpy

from diffusion.errors import InputError
from diffusion.system import tensors
from experiments import convert_weights

TENSORS = dict(a=np.arange(6, dtype=np.float32).reshape(2, 3), b=np.array(2., np.float32))


def refused(path, data=None):
  """The message of the refusal of a file with these bytes."""
  if data is not None:
    path.write_bytes(data)
  with pytest.raises(InputError) as error:
    tensors.read(str(path), 'the weights of X, from Y')
  message = str(error.value)
  assert '\n' not in message and 'expected the weights of X, from Y' in message
  if data is not None:
    assert hashlib.sha256(data).hexdigest() in message
  return message


def archive():
  data = io.BytesIO()
  with zipfile.ZipFile(data, 'w') as file:
    file.writestr('archive/data.pkl', pickle.dumps(1))
  return data.getvalue()


class Bomb:
  """Makes a file of this name when it is unpickled."""
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), 'w')


def test_a_pickle_is_refused_unread_and_the_way_out_is_named(tmp_path):
  for data in (pickle.dumps(Bomb(tmp_path / 'harm')), archive()):
    assert 'python -m experiments.convert_weights IN.pth OUT.safetensors' in refused(tmp_path / 'x.pth', data)
  assert not (tmp_path / 'harm').exists()


def test_a_header_of_any_length_is_read(tmp_path):
  first = set()
  for extra in range(0, 300, 8):  # its length comes first, and one in 32 begins as a pickle does
    data = safetensors.numpy.save(TENSORS, dict(config='x' * extra))
    first.add(data[:1])
    (tmp_path / 'x.safetensors').write_bytes(data)
    assert tensors.read(str(tmp_path / 'x.safetensors'), 'X').tensors.keys() == TENSORS.keys()
  assert b'\x80' in first


def test_what_is_no_whole_safetensors_file_is_refused(tmp_path):
  whole = safetensors.numpy.save(TENSORS)
  huge = (2 ** 62).to_bytes(8, 'little') + b'{}'
  for data in (b'', b'hello', whole[:-1], whole + b'x', b'<html>not found</html>' * 9, huge):
    assert f'not a complete safetensors file ({len(data)} bytes' in refused(tmp_path / 'x.safetensors', data)


def test_a_type_that_numpy_lacks_is_named(tmp_path):
  header = b'{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'.ljust(64)
  assert 'type BF16' in refused(tmp_path / 'x.safetensors', len(header).to_bytes(8, 'little') + header + b'\0\0')


def test_a_path_that_leads_nowhere_is_refused(tmp_path):
  assert 'No such file' in refused(tmp_path / 'none.safetensors')
  assert 'cannot be read' in refused(tmp_path)
  for path in ('', 3, None):
    with pytest.raises(InputError, match=rf'^{path!r} is not the path .*expected X'):
      tensors.read(path, 'X')


def test_a_whole_file_is_read_with_its_digest(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file(TENSORS, path)
  found = tensors.read(str(path), 'X')
  assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
  assert {k: v.tolist() for k, v in found.tensors.items()} == {k: v.tolist() for k, v in TENSORS.items()}


def test_a_tree_is_read_by_its_paths_and_what_differs_is_named(tmp_path):
  like = dict(a=dict(kernel=jax.ShapeDtypeStruct((2, 3), np.float32)), b=jax.ShapeDtypeStruct((), np.float32))
  good = {'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'b': np.ones((), np.float32)}
  def read(arrays):
    safetensors.numpy.save_file(arrays, tmp_path / 'w')
    return tensors.read_tree(tmp_path / 'w', like, 'the export of X')
  tree = read(good)
  assert jax.tree.structure(tree) == jax.tree.structure(like)
  assert np.array_equal(tree['a']['kernel'], good['a/kernel']) and tree['b'] == 1
  for arrays, message in (({'b': good['b']}, 'lacks a/kernel;'), (good | {'c': good['b']}, 'does not: c;'),
                          (good | {'b': np.zeros(2, np.float32)}, r'b float32 \[2\], not float32 \[\]'),
                          (good | {'a/kernel': np.zeros((2, 3), np.float16)}, r'a/kernel float16 .*not float32')):
    with pytest.raises(InputError, match=message) as error:
      read(arrays)
    assert 'expected the export of X' in str(error.value) and '\n' not in str(error.value)


# ---- conversion
@pytest.fixture
def torch():
  return pytest.importorskip('torch')


def save(torch, value, path):
  torch.save(value, path)
  return path


def test_tensors_of_a_pth_come_out_as_they_were(torch, tmp_path):
  state = {k: torch.tensor(v) for k, v in TENSORS.items()}
  state |= {'half': torch.tensor([.5, -2.]).half(), 'turned': state['a'].T, 'bn.num_batches_tracked': torch.tensor(7)}
  plain = save(torch, state, tmp_path / 'p.pth')
  nested = save(torch, dict(state_dict=state, epoch=3), tmp_path / 'n.pth')
  for source in (plain, nested):
    target = tmp_path / 'out.safetensors'
    count, before, after = convert_weights.convert(source, target)
    assert count == 4 and before == hashlib.sha256(source.read_bytes()).hexdigest()
    found = tensors.read(str(target), 'X')
    assert found.digest == after
    right = TENSORS | dict(half=np.array([.5, -2.], np.float32), turned=TENSORS['a'].T)
    assert found.tensors.keys() == right.keys() and all(np.array_equal(found.tensors[k], right[k]) for k in right)
    with safetensors.safe_open(target, 'np') as file:
      assert file.metadata() == dict(source_sha256=before)
  assert convert_weights.convert(nested, target)[2] == after  # the same bytes again


def test_a_program_in_a_pickle_is_refused_and_not_run(torch, tmp_path):
  for data in (dict(a=torch.zeros(2), bomb=Bomb(tmp_path / 'harm')), Bomb(tmp_path / 'harm')):
    source = save(torch, data, tmp_path / 'bad.pth')
    with pytest.raises(InputError, match='refused, nothing of it was run') as error:
      convert_weights.convert(source, tmp_path / 'out.safetensors')
    assert '\n' not in str(error.value)
  assert not (tmp_path / 'harm').exists() and not (tmp_path / 'out.safetensors').exists()


@pytest.mark.parametrize('value, message', [
  ([1, 2], 'found list'), ({}, 'found dict'), (dict(a=1.), 'found dict'), ({1: 'x'}, 'found dict')])
def test_what_is_no_dictionary_of_tensors_is_refused(torch, value, message, tmp_path):
  with pytest.raises(InputError, match=f'expected a dictionary of named tensors, {message}'):
    convert_weights.convert(save(torch, value, tmp_path / 'x.pth'), tmp_path / 'out.safetensors')


def test_values_that_are_not_finite_are_refused(torch, tmp_path):
  source = save(torch, dict(a=torch.tensor([1., float('nan')])), tmp_path / 'x.pth')
  with pytest.raises(InputError, match='a has values that are not finite'):
    convert_weights.convert(source, tmp_path / 'out.safetensors')


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path):
  source = tmp_path / 'pt_inception-2015-12-05-6726825d.pth'
  source.write_bytes(b'half of it')
  digest = hashlib.sha256(b'half of it').hexdigest()
  with pytest.raises(InputError, match=f'6726825d .*{digest}'):
    convert_weights.convert(source, tmp_path / 'out.safetensors')


def test_the_command_says_in_one_line_what_is_wrong(monkeypatch, tmp_path, capsys):
  source = tmp_path / 'x.pth'
  source.write_bytes(archive())
  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', ['convert_weights', *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
      convert_weights.main()
    assert str(stop.value).startswith('error: ') and '\n' not in str(stop.value)
    return str(stop.value)
  assert 'expected a name ending in .safetensors' in run(source, tmp_path / 'out.pth')
  assert 'cannot be read (No such file' in run(tmp_path / 'none.pth', tmp_path / 'out.safetensors')
  monkeypatch.setitem(sys.modules, 'torch', None)
  assert 'needs PyTorch, which is not installed; pip install torch' in run(source, tmp_path / 'out.safetensors')


def test_text_keeps_arrays_that_do_not_lie_in_rows_and_scalars():
  a = np.arange(12, dtype=np.float32).reshape(3, 4)
  arrays = dict(turned=a.T, reversed=a[:, ::-1], part=a[:, 1:3], scalar=np.array(2, np.float32))
  back = tensors.from_text(tensors.to_text(arrays))
  for name, array in arrays.items():
    np.testing.assert_array_equal(back[name], array)
    assert back[name].shape == array.shape
