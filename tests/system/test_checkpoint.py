"""Round trips, checksums and devices: what is restored is bit for bit what was saved."""
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion.errors import InputError
from diffusion.system import checksums as checksums_of
from diffusion.system.checkpoint import open_checkpoints
from diffusion.system.checksums import checksums
from tests.checkpoint_states import abstract, mixed, python, same_bits, state_at


# ---- round trip

def test_a_state_comes_back_bit_for_bit_with_its_types_and_its_meta(tmp_path):
  state = {
    'state': state_at(3), 'n': 7, 'x': 0.1, 'float64': np.arange(3) / 7, 'scalar': np.float64(1 / 3),
    'bits': jnp.asarray([jnp.nan, -0.0, jnp.inf, 1e-45], jnp.float32), 'flag': jnp.asarray([True, False]),
    'int8': jnp.arange(-3, 3, dtype=jnp.int8), 'nothing': None, 'none': (),
  }
  meta = {'config': {'lr': 1e-3, 'name': 'ü', 'list': [1, None, True]}, 'position': 12345678901234}
  out = open_checkpoints(tmp_path)
  out.save(3, state, meta)
  out.close()
  found = open_checkpoints(tmp_path).restore(abstract(state))
  assert found.step == 3 and found.meta == meta and found.notes == [] and same_bits(found.state, state)
  assert open_checkpoints(tmp_path).latest_meta() == (3, meta)


def test_training_may_overwrite_the_state_while_it_is_written(tmp_path):
  state = {str(k): jnp.full((300, 300), float(k)) for k in range(8)}
  advance = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  state = advance(state)
  want = jax.tree.map(lambda x: np.array(x, copy=True), state)
  out = open_checkpoints(tmp_path)
  out.save(1, state, {})
  for _ in range(20):
    state = advance(state)
  out.wait()
  got = out.restore(abstract(state)).state
  out.close()
  assert all(np.array_equal(got[name], want[name]) for name in want)


def test_reading_where_nothing_is_gives_none_and_makes_no_directory(tmp_path):
  none = open_checkpoints(tmp_path / 'absent')
  assert none.restore(abstract(state_at(0))) is None and none.latest_meta() is None and none.steps() == []
  none.close()
  assert not (tmp_path / 'absent').exists()


def test_old_steps_go_and_those_to_keep_stay(tmp_path):
  out = open_checkpoints(tmp_path, keep=2, keep_every=4)
  for step in range(1, 8):
    out.save(step, {'x': jnp.full(3, step)}, {})
  out.close()
  assert out.steps() == [4, 6, 7]


def test_saving_a_step_again_leaves_the_first_as_it_is(tmp_path):
  out = open_checkpoints(tmp_path)
  out.save(1, {'x': jnp.ones(3)}, {'first': True})
  out.wait()
  out.save(1, {'x': jnp.zeros(3)}, {'first': False})
  out.close()
  found = open_checkpoints(tmp_path).restore({'x': jax.ShapeDtypeStruct((3,), jnp.float32)})
  assert found.meta == {'first': True} and found.state['x'].tolist() == [1, 1, 1]


# ---- checksums

def test_checksum_of_one_word_is_the_published_murmur3_of_the_empty_text_with_that_seed():
  words = {name: np.array([word], np.uint32) for name, word in [('1', 1), ('f', 0xffffffff), ('0', 0)]}
  assert checksums(words) == {'1': 0x514e28b7, 'f': 0x81f16f39, '0': 0}


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'uint32', 'float64', 'int64', 'complex64'])
def test_every_single_flipped_bit_changes_the_checksum(dtype):
  array = np.random.default_rng(0).normal(size=(3, 5)).astype(jnp.dtype(dtype))
  sums = {checksums([array])['0']}
  for bit in range(8 * array.nbytes):
    data = bytearray(array.tobytes())
    data[bit // 8] ^= 1 << bit % 8
    sums.add(checksums([np.frombuffer(bytes(data), array.dtype).reshape(3, 5)])['0'])
  assert len(sums) == 1 + 8 * array.nbytes


def test_swaps_shifts_and_a_truncation_change_the_checksum():
  x = np.random.default_rng(1).normal(size=64).astype(np.float32)
  x[32:] = -x[:32]  # equal but for the sign bit: the pairs that a linear weighting misses
  changed = [x]
  for i, j in [(0, 1), (0, 32), (5, 37), (3, 35), (63, 0)]:
    swapped = x.copy()
    swapped[[i, j]] = x[[j, i]]
    changed.append(swapped)
  cut = x.copy()
  cut[48:] = 0
  changed += [cut, np.roll(x, 1), x[::-1], -x]
  assert len({checksums([c])['0'] for c in changed}) == len(changed)


def test_the_parts_of_an_array_add_up_to_its_checksum_however_it_is_cut():
  x = np.random.default_rng(2).normal(size=(6, 4, 10))
  for array in (x, x.astype(np.float32), x.astype(np.float16)):
    for rows, columns in [(1, 1), (6, 1), (2, 5), (3, 2)]:
      total = 0
      for i in range(0, 6, 6 // rows):
        for j in range(0, 10, 10 // columns):
          part = array[i:i + 6 // rows, :, j:j + 10 // columns]
          total += int(checksums_of.of_part(part, [i, 0, j], array.shape))
      assert total % 2**32 == checksums([array])['0']


def test_a_typed_key_is_refused_with_what_to_store_instead(tmp_path):
  with pytest.raises(InputError, match='rng is a typed PRNG key.*key_data'):
    open_checkpoints(tmp_path).save(1, {'rng': jax.random.key(0)}, {})


# ---- devices

ON_EIGHT = '''
import sys, jax
from diffusion.system import sharding
from diffusion.system.checkpoint import open_checkpoints
from tests.checkpoint_states import mixed, same_bits
out = open_checkpoints(sys.argv[1], keep=9)
host = mixed()

def restored(step, fsdp, devices):
  mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
  places = sharding.by_shape(mesh, host)
  tree = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), host, places)
  state = out.restore(tree, step).state
  assert same_bits(state, host), (step, fsdp, devices)
  assert jax.tree.map(lambda a: a.sharding, state) == places
  for name in ('wide', 'tall'):  # divided indeed
    assert {shard.data.size for shard in state[name].addressable_shards} == {host[name].size // fsdp}
  return state

def passed_on(step, fsdp, devices):
  out.save(step, restored(step - 1, fsdp, devices), {})
  out.wait()

passed_on(2, 8, 8)   # what one device saved, on fsdp = 8
passed_on(3, 4, 8)   # data x fsdp = 2 x 4
passed_on(4, 8, 8)   # and back
passed_on(5, 1, 2)   # two devices, all data
restored(3, 1, 1)
restored(4, 1, 8)
out.close()
'''


def test_saved_on_one_device_on_eight_and_on_two_by_four_and_restored_on_each_other(tmp_path):
  state = mixed()
  out = open_checkpoints(tmp_path, keep=9)
  out.save(1, state, {})
  out.close()
  command, env = python(ON_EIGHT, tmp_path, devices=8)
  subprocess.run(command, env=env, check=True)
  records = []
  for step in (1, 2, 3, 4, 5):  # in this process, which has one device
    found = open_checkpoints(tmp_path).restore(abstract(state), step)
    assert same_bits(found.state, state) and {len(leaf.devices()) for leaf in jax.tree.leaves(found.state)} == {1}
    records.append((tmp_path / str(step) / 'meta' / 'metadata').read_text())
  assert len(jax.devices()) == 1 and len(set(records)) == 1  # the checksums do not depend on the mesh either


def test_keep_below_one_is_refused(tmp_path):
  with pytest.raises(InputError, match='got 0'):
    open_checkpoints(tmp_path, keep=0)
