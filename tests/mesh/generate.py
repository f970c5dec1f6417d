"""Run in its own process: greedy tokens on meshes of several shapes.

  python -m tests.mesh.generate

Each line ends with the shape of one device's keys.
"""

import os

os.environ['JAX_NUM_CPU_DEVICES'] = '8'
os.environ['JAX_PLATFORMS'] = 'cpu'

# pylint: disable=wrong-import-position
import math

import jax

from mansu_jax import tree_paths
from mansu_jax.config import run as run_config
from mansu_jax.models import layout
from mansu_jax.runtime import sharding
from mansu_jax.stages.prepare import generating
from tests.models import tiny


def _generate(cfg, weights):
  asked = [row[:n].tolist() for n, row in zip(
      (9, 1, 4, 7, 12), tiny.tokens(cfg, batch=5, length=12))]
  make = generating.make(cfg)
  again = [asked[0] + row for row in asked]
  return (make(weights, asked, max_new_tokens=7),
          make(weights, again, max_new_tokens=7, beginnings=[0] * 5))


def main():
  cfg = tiny.config(vocab_size=104)
  weights = tiny.params(cfg)
  want = _generate(cfg, weights)
  for sizes in ((4, 1, 1), (1, 4, 1), (1, 1, 2), (2, 2, 2)):
    with jax.set_mesh(sharding.make_mesh(
        run_config.MeshConfig(**dict(zip(sharding.AXES, sizes))),
        jax.devices()[:math.prod(sizes)])):
      placed = tree_paths.map_named(
          lambda name, x: sharding.shard(x, layout.AXES[name]), weights)
      got = _generate(cfg, placed)
      _, cache = generating.make(cfg).prefill(
          placed, tiny.tokens(cfg, batch=8), jax.numpy.full(8, 3), slots=16)
    shards = cache['keys'].sharding.shard_shape(cache['keys'].shape)
    print(f'{sizes}: {"equal" if got == want else "differ"}; {shards}')


if __name__ == '__main__':
  main()
