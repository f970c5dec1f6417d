"""Run in its own process: the chain over four devices equals that on one."""

import os

os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'
os.environ['JAX_PLATFORMS'] = 'cpu'

# pylint: disable=wrong-import-position
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import quant
from mansu_jax import transforms


def _walk(tx, params, sharding):
  put = lambda tree: jax.tree.map(
      lambda x: jax.device_put(x, sharding) if x.ndim else x, tree)
  params = put(params)
  state, update = put(tx.init(params)), jax.jit(tx.update)
  for i in range(3):
    grads = jax.tree.map(lambda p: jnp.sin(100.0 * (i + 1) * p), params)
    updates, state = update(put(grads), state, params)
    params = optax.apply_updates(params, updates)
  return transforms.floor_params(state)


def main():
  rng = np.random.default_rng(0)
  params = {'w': jnp.asarray(rng.normal(size=(4, 32, 12)), jnp.float32)}
  layout = {'w': quant.BlockLayout(memory='LDF', out='F', inp='D')}
  tx = transforms.mansu(
      optax.adam(0.05), fisher={'w': jnp.abs(params['w'])},
      circuit_mask={'w': params['w'] > -1},
      grids=[quant.code_grid(params, name, layout) for name in ('nf4', 'fp4')])
  mesh = jax.make_mesh((4,), ('data',))
  over = lambda *spec: jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(*spec))
  sharded, alone = _walk(tx, params, over('data')), _walk(tx, params, over())
  np.testing.assert_array_equal(sharded['w'], alone['w'])
  moved = int(jnp.sum(alone['w'] != params['w']))
  devices = len(sharded['w'].sharding.device_set)
  print(f'{moved} weights moved, equal on {devices} devices')


if __name__ == '__main__':
  main()
