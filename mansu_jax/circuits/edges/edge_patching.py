"""Runs the model with some edges patched by the corrupted prompt.

The target of a patched edge reads z'_u, the output of source u on the corrupted
prompt, instead of z_u. All later computation continues from there, and z_u is
the source's output in the same run, so several edges can be patched at once.
`exact_scores` gives the exact effects that edge scores estimate. Sources and
targets are ordered as in `edges`.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import places as places_lib

Array = types.Array


@functools.partial(jax.jit, static_argnames='config')
def corrupted(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch) -> Array:
  """The output of each source on the corrupted prompts, [S, R, T, D]."""
  heads_of = _attention(config, batch)

  def layer(x, numbered):
    number, weights = numbered
    weights = _float32(weights)
    heads = heads_of(number, weights, jnp.broadcast_to(
        x, (3 * config.num_heads, *x.shape)))
    middle = x + heads.sum(0)
    out = _mlp(config, weights, layers.mlp_reads(config, x, middle))
    return middle + out, jnp.concatenate([heads, out[None]])

  with jax.default_matmul_precision('float32'):
    start = decoder.embed(
        config, params, batch.corrupt, batch.positions).astype(jnp.float32)
    _, made = lax.scan(layer, start, (
        jnp.arange(config.num_layers), params['layers']))  # [L, N + 1, R, T, D]
    return jnp.concatenate([start[None], made.reshape(-1, *start.shape)])


@functools.partial(jax.jit, static_argnames='config')
def metric(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, reference: Array, patched: Array) -> Array:
  """The metric on the clean prompts with some edges patched.

  Args:
    config: the model's config.
    params: full params.
    batch: B pairs, packed in any way.
    reference: output of `corrupted`, [S, R, T, D]; the program takes one and a
      half times its memory besides.
    patched: bool [S, G]; entries that are no edge are ignored.

  Returns:
    logit(answer) - logit(corrupted answer), [B].
  """
  patched = jnp.where(edges_lib.is_edge(config), patched, 0.0)
  with jax.default_matmul_precision('float32'):
    return _metric(config, params, batch, reference, patched)


def _metric(config, params, batch, reference, patched):
  """As `metric`, with float32 `patched`.

  The differences between the sources' outputs and `reference` are stored by
  group of layers, so a layer multiplies with no group above its own.
  """
  x = decoder.embed(
      config, params, batch.clean, batch.positions).astype(jnp.float32)
  below = x[None] - reference[:1]
  of_layer = functools.partial(
      _patched_layer, config, _attention(config, batch), params['layers'],
      reference, patched)
  for group in edges_lib.layer_groups(config.num_layers):
    own = jnp.zeros((len(group) * (config.num_heads + 1), *x.shape))
    (x, own), _ = lax.scan(
        functools.partial(of_layer, below, group.start), (x, own),
        jnp.asarray(group))
    below = jnp.concatenate([below, own])
  x = x - _sum_of((below,), patched[:, -1:])[0]
  hidden = layers.norm(config, params, 'final_norm', x)
  return eap_ig.metric(config, params, hidden, batch)


def _patched_layer(
    config, heads_of, stacked, reference, patched, below, first, carry, number):
  """A step of the scan over a group of layers that starts at layer `first`.

  The carry is the residual stream [R, T, D] and the group's differences.
  """
  x, own = carry
  width, reads = config.num_heads + 1, 3 * config.num_heads + 1
  weights = _float32(jax.tree.map(
      lambda w: lax.dynamic_index_in_dim(w, number, keepdims=False), stacked))
  part = functools.partial(
      lax.dynamic_slice_in_dim, start_index=1 + number * width)
  columns = lax.dynamic_slice_in_dim(patched, number * reads, reads, 1)
  known = part(reference, slice_size=width)
  inputs = x[None] - _sum_of((below, own), columns)  # [3 N + 1, R, T, D]
  heads = heads_of(number, weights, inputs[:-1])
  made = heads - known[:-1]
  middle = inputs[-1] + heads.sum(0) - _sum_of(
      (made,), part(columns[:, -1:], slice_size=width - 1))[0]
  out = _mlp(config, weights, layers.mlp_reads(config, inputs[-1], middle))
  own = lax.dynamic_update_slice_in_dim(
      own, jnp.concatenate([made, (out - known[-1])[None]]),
      (number - first) * width, 0)
  return (x + heads.sum(0) + out, own), None


def _sum_of(differences: Sequence[Array], columns: Array) -> Array:
  """Sums [t, R, T, D] of arrays [u, R, T, D] by columns [S, t], in order."""
  stops = np.cumsum([len(some) for some in differences])
  return sum(
      jnp.einsum('ut,uRTD->tRTD', columns[stop - len(some):stop], some)
      for some, stop in zip(differences, stops))


def _float32(weights: types.Params) -> types.Params:
  return jax.tree.map(lambda w: w.astype(jnp.float32), weights)


def _attention(config, batch):
  """Makes `(number, weights, inputs) -> outputs` of a layer's heads.

  `inputs` [3 N, R, T, D] holds the query, key and value inputs of each query
  head, and the outputs, which are added to the stream, are [N, R, T, D].
  """
  places = places_lib.find(config, batch.positions, places_lib.packed(
      batch.positions, batch.segments))
  def run(number, weights, inputs):
    attn = layers.of_query_heads(config, weights['attn'])
    normed = layers.norm(config, weights, 'attn_norm', inputs)
    projected = [layers.einsum('NRTD,DNH->RTNH', part, attn[name])
                 for part, name in zip(jnp.split(normed, 3), 'qkv')]
    heads = layers.attend_projected(
        config, attn, projected, places.of_layer(config, number))
    out = jnp.einsum('RTNH,NHD->NRTD', heads, attn['o'])
    if 'o_bias' in attn:  # Each head adds a share of it.
      out += (attn['o_bias'] / config.num_heads)[None, None, None]
    return layers.post_norm_shares(config, weights, 'attn', out)

  return run


def _mlp(config, weights, x):
  """What the MLP adds to the stream, [R, T, D], for its input."""
  normed = layers.norm(config, weights, 'mlp_norm', x)
  return layers.mlp_adds(
      config, weights, layers.mlp_hidden(config, weights['mlp'], normed))


def exact_scores(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, *, native_kv: bool = False) -> np.ndarray:
  """Exact scores: the clean metric less the metric with one edge patched.

  Takes one run per edge, so it suits small models. Use it to check `edges`
  scores on a model and pairs of your own:

      exact = edge_patching.exact_scores(config, params, batch)
      found = edges.pair_scores(
          config, params, batch, points=edges.eap_ig_points(5))
      np.corrcoef(exact.ravel(), np.ravel(found.edges))

  Args:
    config: the model's config.
    params: full params.
    batch: B pairs.
    native_kv: whether to patch the keys (and the values) of all query heads of
      a group together; each of these targets then has the group's score.

  Returns:
    Scores [B, S, G], 0 if there is no edge.
  """
  real = edges_lib.is_edge(config)
  reference = corrupted(config, params, batch)
  run = functools.partial(metric, config, params, batch, reference)
  clean = run(np.zeros_like(real))
  out = np.zeros((clean.size, *real.shape), np.float32)
  for source, target in np.argwhere(real):
    patched = np.zeros_like(real)
    patched[source, _together(config, target) if native_kv else target] = True
    out[:, source, target] = clean - run(patched)
  return out


def _together(config: model_config.ModelConfig, target: int) -> np.ndarray:
  """The targets that share one native key or value input with this one."""
  heads, group = config.num_heads, config.num_heads // config.num_kv_heads
  input_ = target % (3 * heads + 1)
  if not heads <= input_ < 3 * heads or target == config.num_layers * (
      3 * heads + 1):
    return np.array([target])
  return target - input_ % group + np.arange(group)
