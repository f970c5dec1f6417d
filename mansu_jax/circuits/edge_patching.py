"""Runs of the model in which some edges carry what the corrupted prompt gave.

The truth that edge scores estimate, and how faithful a circuit of edges is. A
patched edge's target reads z'_u instead of z_u, everything downstream runs on,
and a source is what it is in this run: so several edges may be patched at once.
Sources, targets and their order are those of `edges`.
"""

from __future__ import annotations

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import edges as edges_lib
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layers as layers_lib

Array = types.Array


@functools.partial(jax.jit, static_argnames='config')
def metric(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, patched: Array) -> Array:
  """The metric on the clean prompts with some edges patched.

  Args:
    config: the model's.
    params: full params.
    batch: B pairs, packed in any way.
    patched: bool [S, G]; entries that are no edge are not looked at.

  Returns:
    logit(answer) - logit(corrupted answer), [B].
  """
  with jax.default_matmul_precision('float32'):
    return _metric(config, params, batch, patched)


def _metric(config, params, batch, patched):
  heads = config.num_heads
  patched = jnp.where(edges_lib.is_edge(config), patched, 0.0)
  rotary = layers_lib.rotary_tables(config, batch.positions)
  mask = decoder.segment_mask(batch.positions, batch.segments)[:, None, None]
  run = functools.partial(_layer, config, rotary, mask)
  stacked = params['layers']
  embed = lambda tokens: decoder.embed(params, tokens).astype(jnp.float32)

  def corrupt_layer(x, weights):
    outs = run(weights, jnp.broadcast_to(x, (3 * heads, *x.shape)),
               lambda attention: x + attention.sum(0))
    return x + outs.sum(0), outs

  x = embed(batch.corrupt)
  _, corrupted = lax.scan(corrupt_layer, x, stacked)  # [L, N + 1, R, T, D]

  # Of each source, what this run gives less what the corrupted prompt gave.
  differences = jnp.zeros((len(patched), *x.shape))
  differences = differences.at[0].set(embed(batch.clean) - x)
  per_layer = 3 * heads + 1

  def patched_layer(carry, xs):
    x, differences = carry
    weights, reference, number = xs
    columns = lax.dynamic_slice_in_dim(
        patched, number * per_layer, per_layer, 1)  # [S, 3 N + 1]
    less = lambda some, known: jnp.einsum('ut,uRTD->tRTD', some, known)
    first = 1 + number * (heads + 1)

    def middle(attention):
      known = lax.dynamic_update_slice_in_dim(
          differences, attention - reference[:heads], first, 0)
      return (x + attention.sum(0)) - less(columns[:, -1:], known)[0]

    outs = run(weights, x - less(columns[:, :-1], differences), middle)
    differences = lax.dynamic_update_slice_in_dim(
        differences, outs - reference, first, 0)
    return (x + outs.sum(0), differences), None

  (x, differences), _ = lax.scan(
      patched_layer, (embed(batch.clean), differences),
      (stacked, corrupted, jnp.arange(config.num_layers)))
  x = x - jnp.einsum('u,uRTD->RTD', patched[:, -1], differences)
  hidden = layers_lib.rms_norm(x, params['final_norm'], config.norm_eps)
  return eap_ig.metric(params, hidden, batch)


def _layer(config, rotary, mask, weights, inputs, middle):
  """Outputs [N + 1, R, T, D] of a layer's heads and MLP.

  Args:
    config: the model's.
    rotary: tables of the rows.
    mask: of the rows.
    weights: one layer's.
    inputs: what the query, key and value inputs of each query head read,
      [3 N, R, T, D].
    middle: from the heads' outputs to what the MLP reads.
  """
  weights = jax.tree.map(lambda w: w.astype(jnp.float32), weights)
  attn, mlp = weights['attn'], weights['mlp']
  group = config.num_heads // config.num_kv_heads
  each = lambda y: jnp.repeat(y, group, axis=1)  # Of each query head.
  normed = layers_lib.rms_norm(inputs, weights['attn_norm'], config.norm_eps)
  q, k, v = (
      jnp.einsum('NRTD,DNH->RTNH', part, matrix) for part, matrix in zip(
          jnp.split(normed, 3), (attn['q'], each(attn['k']), each(attn['v']))))
  heads = layers_lib.attend(
      layers_lib.rotate(q, rotary), layers_lib.rotate(k, rotary), v, mask)
  attention = jnp.einsum('RTNH,NHD->NRTD', heads, attn['o'])
  normed = layers_lib.rms_norm(
      middle(attention), weights['mlp_norm'], config.norm_eps)
  hidden = nn.silu(jnp.einsum('RTD,DF->RTF', normed, mlp['gate']))
  hidden *= jnp.einsum('RTD,DF->RTF', normed, mlp['up'])
  out = layers_lib.project_down(hidden, mlp['down'])
  return jnp.concatenate([attention, out[None]])


def exact_scores(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, *, native_kv: bool = False) -> np.ndarray:
  """Exact scores: the clean metric less that with one edge patched.

  One run an edge: for small models.

  Args:
    config: the model's.
    params: full params.
    batch: B pairs.
    native_kv: patch the keys, and the values, of all query heads of a group
      together; each of these targets then holds the group's score.

  Returns:
    Scores [B, S, G], 0 where there is no edge.
  """
  real = edges_lib.is_edge(config)
  run = functools.partial(metric, config, params, batch)
  clean = run(np.zeros_like(real))
  out = np.zeros((clean.size, *real.shape), np.float32)
  for source, target in np.argwhere(real):
    patched = np.zeros_like(real)
    patched[source, _together(config, target) if native_kv else target] = True
    out[:, source, target] = clean - run(patched)
  return out


def _together(config: model_config.ModelConfig, target: int) -> np.ndarray:
  """The targets that are one native input with this one."""
  heads, group = config.num_heads, config.num_heads // config.num_kv_heads
  place = target % (3 * heads + 1)
  if not heads <= place < 3 * heads or target == config.num_layers * (
      3 * heads + 1):
    return np.array([target])
  return target - place % group + np.arange(group)
