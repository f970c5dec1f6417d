"""Run in its own process: attacks on a mesh and on one device.

  python -m tests.mesh.attack
"""

import os

os.environ['JAX_NUM_CPU_DEVICES'] = '4'
os.environ['JAX_PLATFORMS'] = 'cpu'

# pylint: disable=wrong-import-position
import contextlib

import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.attacks import fine_tune
from mansu_jax.config import run as run_config
from mansu_jax.models import layout
from mansu_jax.runtime import sharding
from tests.models import tiny

_CONFIG = tiny.config(num_layers=2)


def _attack(adapters):
  """Params after four steps, and how often the step was compiled."""
  tokens, length = tiny.tokens(_CONFIG, 20, 8), np.full(20, 8, np.int32)
  scored = np.arange(8)[None] == np.full((20, 1), 5)
  (batches,) = fine_tune.batches(
      [fine_tune.Lesson(tokens, length, scored, False)], 4, 0)
  params = tree_paths.map_named(
      lambda name, x: sharding.shard(x, layout.AXES[name]),
      tiny.params(_CONFIG))
  fine_tune.train_step.clear_cache()
  last = fine_tune.run(
      _CONFIG, params, batches, lambda x: {'params': sharding.to_host(x)},
      steps=(4,), learning_rate=1e-3, adapters=adapters)[-1]
  return last['params'], fine_tune.train_step._cache_size()


def main():
  sizes = run_config.MeshConfig(data=1, fsdp=2, tensor=2)
  for adapters in (False, True):
    found = []
    for mesh in (contextlib.nullcontext(), jax.set_mesh(
        sharding.make_mesh(sizes))):
      with mesh:
        found.append(_attack(adapters))
    (alone, _), (got, compiled) = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(
        a, b, atol=1e-5), alone, got)
    print(f'equal; compiled {compiled}')


if __name__ == '__main__':
  main()
