"""Run as several processes: checks the collective functions."""

import os

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from mansu_jax.config import run as run_config
from mansu_jax.runtime import processes
from mansu_jax.runtime import sharding


def _fails(kind, make):
  try:
    make()
  except kind as error:
    return str(error)
  raise AssertionError('no error')


def main():
  processes.join(60)
  me = int(os.environ['JAX_PROCESS_ID'])
  assert (processes.index(), processes.is_primary()) == (me, me == 0)
  for size in (0, 3, 1016, 1017, 5_000, 3_000_000):
    value = {'x': np.arange(size, dtype=np.uint8), 'name': 'é', 'none': None}
    got = processes.broadcast_from_primary(lambda: value if me == 0 else 1 / 0)
    np.testing.assert_array_equal(got['x'], value['x'])
    assert (got['name'], got['none']) == ('é', None)
  assert processes.broadcast_from_primary(  # Nested.
      lambda: processes.broadcast_from_primary(lambda: 5)) == 5

  def full():
    raise OSError(28, 'No space left', 'file')
  assert 'No space' in _fails(
      OSError, lambda: processes.broadcast_from_primary(full))
  assert processes.broadcast_from_primary(lambda: me) == 0

  for one in (True, False):
    assert processes.any_true(one and me == 1) == one

  assert processes.raise_on_all(lambda: me) == me
  wrong = lambda: {0: 1}[me]
  text = _fails(
      ValueError if me == 0 else KeyError,
      lambda: processes.raise_on_all(wrong))
  assert text == ('Process 1 failed: 1' if me == 0 else '1'), text

  with jax.set_mesh(sharding.make_mesh(run_config.MeshConfig())):
    x = np.arange(48, dtype=np.float32).reshape(8, 6)
    split = sharding.shard(x, 'D.')
    assert not sharding.is_local(split)
    whole = jax.jit(lambda x: 2 * x, out_shardings=PartitionSpec())(split)
    assert sharding.is_local(whole) and sharding.is_local(x)
    given = {
        'split': 2 * split, 'whole': whole, 'host': 2 * x, 'flags': split > 7,
        'narrow': (2 * split).astype(jnp.bfloat16)}
    for fetched in (
        {name: sharding.to_host_uncached(x) for name, x in given.items()},
        sharding.to_host(given)):
      for name, got in fetched.items():
        assert isinstance(got, np.ndarray), name
        want = x > 7 if name == 'flags' else 2 * x
        np.testing.assert_array_equal(np.asarray(got, want.dtype), want)
  print('all equal')


if __name__ == '__main__':
  main()
