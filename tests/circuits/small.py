"""A decoder and circuits small enough for loops."""

import jax
import numpy as np

from mansu_jax.circuits import graph
from tests.models import tiny


def config(**changes):
  return tiny.config(**{
      'vocab_size': 29, 'd_model': 16, 'num_layers': 2, 'num_heads': 4,
      'num_kv_heads': 2, 'd_head': 4, 'd_ff': 24} | changes)


def params(cfg, seed=0):
  return jax.device_get(tiny.params(cfg, seed))


def circuit(cfg, kinds=graph.KINDS):
  """Uneven over layers; layer 0 has no key/value head, and all kinds pad."""
  chosen = {'neurons': [(0, 0), (0, 7), (0, 23), (1, 7)],
            'heads': [(0, 2), (1, 0), (1, 1), (1, 3)],
            'kv_heads': [(1, 1)]}
  out = graph.empty(cfg)
  for kind in kinds:
    for node in chosen[kind]:
      out[kind][node] = True
  return out


def members(nodes):
  return {kind: nodes[kind] for kind in graph.KINDS}


def random_circuit(cfg, share, seed=0, kinds=graph.KINDS):
  rng = np.random.default_rng(seed)
  return graph.Circuit(**{
      kind: rng.random(shape) < (share if kind in kinds else 0)
      for kind, shape in graph.shapes(cfg).items()})
