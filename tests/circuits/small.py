"""A decoder and circuits that are small enough for loops."""

import dataclasses

import jax
import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edges
from mansu_jax.data import pairs as pairs_lib
from tests.models import tiny


def config(**changes):
  return tiny.config(**{
      'vocab_size': 29, 'd_model': 16, 'num_layers': 2, 'num_heads': 4,
      'num_kv_heads': 2, 'd_head': 4, 'd_ff': 24} | changes)


def with_edge_index(**changes):
  """A config of two heads, and a function from names to an edge's index."""
  cfg = config(num_heads=2, num_kv_heads=1, d_head=8, **changes)
  place = lambda source, target: (
      edges.source_names(cfg).index(source),
      edges.target_names(cfg).index(target))
  return cfg, place


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


def pairs(same_last_token=False):
  """Three attribution pairs, of 4, 5 and 5 tokens."""
  rng = np.random.default_rng(3)
  made = []
  for length in (4, 5, 5):
    clean, corrupt = rng.integers(1, 29, (2, length))
    corrupt[-1] = clean[-1] if same_last_token else (clean[-1] + 1) % 29
    made.append(pairs_lib.AttributionPair(
        tuple(clean.tolist()), tuple(corrupt.tolist()),
        *rng.integers(1, 29, 2).tolist(), fact=str(len(made))))
  return made


def elicited(cfg, weights, same_last_token=False):
  """`pairs`, answers swapped where the metric is higher on the corrupted."""
  made = pairs(same_last_token)
  found = eap_ig.score_pairs(
      cfg, weights, pair_batches.pack(made, len(made)), steps=1)
  return [dataclasses.replace(
      pair, answer_id=pair.corrupt_answer_id, corrupt_answer_id=pair.answer_id)
          if clean < corrupt else pair for pair, clean, corrupt in zip(
              made, found.metric_clean, found.metric_corrupt)]


def members(nodes):
  return {kind: nodes[kind] for kind in graph.KINDS}


def random_circuit(cfg, share, seed=0, kinds=graph.KINDS):
  rng = np.random.default_rng(seed)
  return graph.Circuit(**{
      kind: rng.random(shape) < (share if kind in kinds else 0)
      for kind, shape in graph.shapes(cfg).items()})
