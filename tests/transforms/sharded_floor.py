"""Compares the chain on four devices with one device, in its own process.

Covers Auto and Explicit meshes, and shards every axis of the leaf.
"""

import os

os.environ['JAX_NUM_CPU_DEVICES'] = '4'
os.environ['JAX_PLATFORMS'] = 'cpu'

# pylint: disable=wrong-import-position
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from mansu_jax import quant
from mansu_jax import transforms

_INPUT_FIRST = quant.BlockLayout(memory='LDF', out='F', inp='D')
_TORCH = quant.BlockLayout(memory='LFD', out='F', inp='D')
_CASES = (  # Layout, schemes, and mesh axes of the axes of the leaf.
    (_INPUT_FIRST, ('nf4', 'int8'), ('a', None, None)),
    (_INPUT_FIRST, ('nf4', 'int8'), (None, ('a', 'b'), None)),
    (_INPUT_FIRST, ('q4_0',), (None, 'b', 'a')),
    (_TORCH, ('nf4',), (None, 'a', 'b')),  # Blocks span rows.
)


def _params():
  rng = np.random.default_rng(0)
  return {'w': jnp.asarray(rng.normal(size=(4, 128, 24)), jnp.float32)}


def _transformation(params, layout, names):
  basis = jnp.linalg.qr(_params()['w'][..., :4])[0]  # [L, D, 4]
  if isinstance(params['w'].sharding, jax.sharding.NamedSharding):
    basis = jax.device_put(basis, jax.sharding.NamedSharding(
        params['w'].sharding.mesh, jax.sharding.PartitionSpec(None, 'a')))
  return optax.chain(
      optax.adam(0.05), transforms.project_off_basis({'w': basis}),
      transforms.mansu(
          optax.identity(), fisher={'w': jnp.abs(params['w'])},
          circuit_mask={'w': params['w'] > -1},
          grids=[quant.code_grid(params, name, layout) for name in names]))


def _walk(params, layout, names):
  """The chain, and the params and state after three steps."""
  tx = _transformation(params, layout, names)
  theta, state = params, tx.init(params)
  step = jax.jit(lambda *args: transforms.step(tx, *args))
  for i in range(3):
    grads = jax.tree.map(lambda p: jnp.sin(100.0 * (i + 1) * p), params)
    theta, state = step(grads, state, theta)
  return tx, theta, state


def _latent(state):
  is_floor = lambda n: isinstance(n, transforms.MagnitudeFloorState)
  (floor,) = filter(is_floor, jax.tree.leaves(state, is_leaf=is_floor))
  return floor.latent['w']


def _check_placement(tx, params, state):
  """Checks shardings of states from eager init, traced init and restore."""
  want = params['w'].sharding
  assert _latent(tx.init(params)).sharding.is_equivalent_to(want, 3)
  placed = jax.tree.map(lambda x: x.sharding, state)
  traced = jax.jit(tx.init, out_shardings=placed)(params)
  assert _latent(traced).sharding.is_equivalent_to(want, 3)
  with tempfile.TemporaryDirectory() as folder:
    with ocp.StandardCheckpointer() as checkpointer:
      checkpointer.save(f'{folder}/state', state)
      checkpointer.wait_until_finished()
      abstract = jax.tree.map(
          lambda x, place: jax.ShapeDtypeStruct(
              x.shape, x.dtype, sharding=place),
          jax.eval_shape(tx.init, params), placed)
      found = checkpointer.restore(f'{folder}/state', abstract)
  jax.tree.map(np.testing.assert_array_equal, found, state)
  assert _latent(found).sharding.is_equivalent_to(want, 3)


def main():
  kinds = {'auto': jax.sharding.AxisType.Auto,
           'explicit': jax.sharding.AxisType.Explicit}
  moved = 0
  for layout, names, spec in _CASES:
    _, alone, _ = _walk(_params(), {'w': layout}, names)
    for kind, axis_type in kinds.items():
      mesh = jax.make_mesh((2, 2), ('a', 'b'), axis_types=(axis_type,) * 2)
      place = jax.sharding.NamedSharding(
          mesh, jax.sharding.PartitionSpec(*spec))
      params = jax.device_put(_params(), place)
      tx, theta, state = _walk(params, {'w': layout}, names)
      assert theta['w'].sharding.is_equivalent_to(place, 3), (kind, spec)
      differ = int(np.sum(np.asarray(theta['w']) != np.asarray(alone['w'])))
      assert differ <= 2, (kind, spec, differ)  # Order of sums.
      for name in names:
        check = quant.check_edit(params, theta, name, {'w': layout})
        assert check.survives, (kind, spec, name, check)
        view = quant.fake_quantize(theta, name, {'w': layout})['w']
        assert kind == 'auto' or view.sharding.is_equivalent_to(place, 3)
        moved = max(moved, check.moved)
      if names == ('q4_0',):
        _check_placement(tx, params, state)
  print(f'{moved} weights moved, equal on 4 devices')


if __name__ == '__main__':
  main()
