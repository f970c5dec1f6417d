"""Bytes that the compiler reserves for edge attribution beside the weights.

  python -m experiments.bench.attribution_memory [--topology=v5p:2x2x1]

Compiles EAP-IG on all edges, and on neurons and heads, for SmolLM2-135M in
float32 and 16 pairs of 5 tokens on this machine's CPU. --topology also compiles
it for Llama 3.1 8B in bfloat16 and one pair of 128 tokens, for one chip of a
TPU slice that need not exist. No weights are created. --topology needs `pip
install libtpu`, best in its own environment, because libtpu slows the start of
JAX on machines without a TPU.
"""

from __future__ import annotations

from typing import Any

from absl import app
from absl import flags
import jax
from jax.experimental import topologies
import jax.numpy as jnp

from mansu_jax import tree_paths
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits.edges import edges
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.planning import topology

_TOPOLOGY = flags.DEFINE_string(
    'topology', '', 'TPU slice, such as v5p:2x2x1; empty: SmolLM2 only.')
_STEPS = flags.DEFINE_integer('steps', 5, 'Steps M of the path.')

_SMOLLM2 = model_config.ModelConfig(
    vocab_size=49152, d_model=576, num_layers=30, num_heads=9, num_kv_heads=3,
    d_head=64, d_ff=1536, rope_theta=1e5, norm_eps=1e-5, max_position=8192,
    tie_embeddings=True)
_LLAMA_8B = model_config.ModelConfig(
    vocab_size=128256, d_model=4096, num_layers=32, num_heads=32,
    num_kv_heads=8, d_head=128, d_ff=14336, rope_theta=5e5, norm_eps=1e-5,
    max_position=131072, tie_embeddings=False)


def _abstract(config, dtype, num_pairs, num_tokens, sharding) -> Any:
  """Shapes of params and of a batch."""
  make = lambda shape, dtype: jax.ShapeDtypeStruct(
      shape, dtype, sharding=sharding)
  params = jax.tree.map(
      lambda x: make(x.shape, dtype), decoder.abstract(config))
  ids = make((num_pairs, num_tokens), jnp.int32)
  one = make((num_pairs,), jnp.int32)
  return params, eap_ig.PairBatch(
      clean=ids, corrupt=ids, positions=ids, segments=ids, last=one,
      answer=one, corrupt_answer=one, weight=make((num_pairs,), jnp.float32))


def _rows(name, config, dtype, num_pairs, num_tokens, sharding) -> list[str]:
  """Rows of the table for one model."""
  params, batch = _abstract(config, dtype, num_pairs, num_tokens, sharding)
  weights = tree_paths.count(params) * jnp.dtype(dtype).itemsize
  programs = {
      'neurons and heads': eap_ig.pair_scores.lower(
          config, params, batch, steps=_STEPS.value),
      'edges': edges.pair_scores.lower(
          config, params, batch, points=edges.eap_ig_points(_STEPS.value))}
  rows = []
  for level, program in programs.items():
    used = program.compile().memory_analysis()
    rows.append(
        f'| {name}, {num_pairs} x {num_tokens} tokens | {level}'
        f' | {weights / 1e9:.2f} GB | {used.temp_size_in_bytes / 1e9:.2f} GB'
        f' | {used.output_size_in_bytes / 1e6:.1f} MB |')
  return rows


def main(argv: list[str]) -> None:
  """Compiles all programs and prints a table."""
  del argv
  jax.config.update('jax_platforms', 'cpu')
  if _TOPOLOGY.value:
    topology.prepare(_TOPOLOGY.value)
  print('| model | attribution of | weights | temporary | scores |')
  print('|---|---|---|---|---|')
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  print('\n'.join(_rows('SmolLM2, CPU', _SMOLLM2, 'float32', 16, 5, here)))
  if _TOPOLOGY.value:
    chip = topologies.get_topology_desc(
        platform='tpu', topology_name=_TOPOLOGY.value).devices[0]
    print('\n'.join(_rows(
        f'Llama 3.1 8B, {_TOPOLOGY.value}', _LLAMA_8B, 'bfloat16', 1, 128,
        jax.sharding.SingleDeviceSharding(chip))))


if __name__ == '__main__':
  app.run(main)
