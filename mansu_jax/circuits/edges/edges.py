"""Edge attribution: the effect of each connection of the residual stream.

An edge runs from a source u (the token embedding, a head's output after W_O, an
MLP's output) to a target t, which is an input to a later part before its norm:
the query, key or value input of a head, an MLP, or the logits. Its score is the
sum over positions and width of (z_u - z'_u) times the mean of dm / d in_t over
points e' + f (e - e') between the embeddings of the corrupted and the clean
prompt:

* EAP: at the clean prompt, f = 1 (Syed et al., 2023).
* EAP-IG of M steps: f = 0, 1 / M, ... (M - 1) / M (Hanna et al., 2024).

A positive score favours the clean answer. A key or value head has one target
for each query head that reads it; their scores add up to the score of the
native key or value input.

No array of edges by positions by width is stored, nor one of targets. All
points run through the layers once. The backward pass goes layer by layer:
each layer's targets, averaged over points, are multiplied with the sources
before the next layer's targets are made. They are multiplied with the sources
of their own group of layers and of lower groups only. So the cost beyond the
forward and backward passes is little more than half a product of all sources
and targets.

References:
  Syed et al., Attribution Patching Outperforms Automated Circuit Discovery,
  2023 (arXiv 2310.10348)
  Hanna et al., Have Faith in Faithfulness, 2024 (arXiv 2403.17806)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.circuits import eap_ig
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import places as places_lib

Array = types.Array
EAP = (1.0,)
_GROUPS = 5  # Groups of layers; more save more work but compile longer.


def eap_ig_points(steps: int) -> tuple[float, ...]:
  """The points of EAP-IG of M steps; the clean end is never sampled."""
  return tuple(k / steps for k in range(steps))


class EdgeScores(NamedTuple):
  """Scores of every pair; positive scores favour the clean answer."""

  edges: Array  # [B, S, G], 0 if there is no edge
  metric_clean: Array  # [B]
  metric_corrupt: Array  # [B]


def source_names(config: model_config.ModelConfig) -> list[str]:
  """Names of the S sources, in the order of scores: `a3.h0`, `m3`, ..."""
  names = ['input']
  for layer in range(config.num_layers):
    names += [f'a{layer}.h{head}' for head in range(config.num_heads)]
    names.append(f'm{layer}')
  return names


def target_names(config: model_config.ModelConfig) -> list[str]:
  """Names of the G targets, in the order of scores: `a3.h0<q>`, `m3`, ..."""
  names = []
  for layer in range(config.num_layers):
    names += [f'a{layer}.h{head}<{part}>'
              for part in 'qkv' for head in range(config.num_heads)]
    names.append(f'm{layer}')
  return [*names, 'logits']


def is_edge(config: model_config.ModelConfig) -> np.ndarray:
  """Whether a source and a target form an edge, bool [S, G]."""
  heads, num_layers = config.num_heads, config.num_layers
  # Times at which sources are computed and targets read: two per layer.
  later = 0 if config.parallel else 1  # The MLP reads the layer's heads, too.
  made = [-1] + [time for layer in range(num_layers)
                 for time in [2 * layer] * heads + [2 * layer + later]]
  read = [time for layer in range(num_layers)
          for time in [2 * layer] * 3 * heads + [2 * layer + later]]
  return np.less.outer(made, [*read, 2 * num_layers])


class _Acts(NamedTuple):
  """A layer's activations for the backward pass; rows are points by pairs."""

  x: Array  # [R, T, D], before the layer
  middle: Array  # [R, T, D], between attention and MLP
  projected: tuple[Array, ...]  # [R, T, N, H] of q, [R, T, K, H] of k and v
  inputs: tuple[Array, ...]  # [R, T, F], of the MLP's activation


def layer_groups(num_layers: int) -> list[range]:
  """Splits layers into a few groups, each one scan with known sources."""
  return [range(part[0], part[-1] + 1) for part in np.array_split(
      np.arange(num_layers), min(_GROUPS, num_layers))]


@functools.partial(jax.jit, static_argnames=('config', 'points'))
def pair_scores(
    config: model_config.ModelConfig, params: types.Params,
    batch: eap_ig.PairBatch, *, points: tuple[float, ...]) -> EdgeScores:
  """Edge scores of one batch of pairs, not averaged.

  Args:
    config: the model's config.
    params: full params.
    batch: B pairs, one per row.
    points: values of f, `EAP` or `eap_ig_points(M)`.

  Returns:
    Scores [B, S, G] and both metrics.
  """
  with jax.default_matmul_precision('float32'):
    return _pair_scores(config, params, batch, points)


def _pair_scores(config, params, batch, points):
  # Both ends run for the differences, and serve as points if f is 0 or 1.
  runs = [1.0, 0.0] + [f for f in points if f not in (0.0, 1.0)]
  at = [runs.index(f) for f in points]
  size, length = batch.clean.shape
  embed = lambda tokens: decoder.embed(
      config, params, tokens, batch.positions).astype(jnp.float32)
  start = embed(batch.corrupt)
  path = embed(batch.clean) - start
  ends = jnp.stack([start + path * 0, start])
  ends = ends.at[0].set(embed(batch.clean))
  shares = jnp.asarray(runs[2:]).reshape(-1, 1, 1, 1)
  inner = start[None] + shares * path[None]
  x = jnp.concatenate([ends, inner])  # [P, B, T, D]
  positions = jnp.tile(batch.positions, (len(runs), 1))
  places = places_lib.find(config, positions, places_lib.packed(
      positions, jnp.tile(batch.segments, (len(runs), 1))))
  take = lambda y: _rows(y, at, size)
  x, acts, made = _forward(
      config, params['layers'], x.reshape(-1, length, config.d_model), places,
      size, take)
  final = x.reshape(len(runs), size, length, -1)

  def metric(x):
    hidden = layers.norm(config, params, 'final_norm', x)
    return eap_ig.metric(config, params, hidden, batch)

  grads = jax.vmap(jax.grad(lambda x: metric(x).sum()))(final[np.array(at)])
  # Clean less corrupted outputs of the input, then of each group of layers:
  # [B, sources, T D].
  sources = [path.reshape(size, 1, -1)] + [
      jnp.moveaxis(some, 1, 0).reshape(size, -1, path[0].size)
      for some in made]
  edges = _backward(
      config, params['layers'], grads, acts, sources,
      places.rows(np.arange(len(positions)).reshape(-1, size)[at].ravel()))
  return EdgeScores(edges, metric(final[0]), metric(final[1]))


def _rows(y: Array, at: Sequence[int], size: int) -> Array:
  """The rows of some points, in their order; a slice if they are adjacent."""
  blocks = y.reshape(-1, size, *y.shape[1:])
  first, last = at[0], at[-1]
  if list(at) == list(range(first, last + 1)):
    blocks = blocks[first:last + 1]
  else:
    blocks = blocks[np.asarray(at)]
  return blocks.reshape(-1, *y.shape[1:])


def _forward(config, stacked, x, places, size, take):
  """Runs the layers on rows [R, T, D].

  Returns:
    The residual stream after the last layer; by group of layers, the
    activations in the rows that `take` picks; and, by group, the outputs of
    heads and MLPs in the first `size` (clean) rows less those in the next
    `size` (corrupted) rows.
  """
  def layer(x, number):
    weights = _float32(_of_layer(stacked, number))
    attn, mlp = weights['attn'], weights['mlp']
    normed = layers.norm(config, weights, 'attn_norm', x)
    projected = tuple(layers.project(attn, name, normed) for name in 'qkv')
    heads = layers.attend_projected(
        config, attn, projected, places.of_layer(config, number))
    out = layers.project_out(attn, heads)
    middle = x + layers.post_norm(config, weights, 'attn', out)
    less = lambda y: y[:size] - y[size:2 * size]
    outward = attn['o']
    if config.post_norms:  # It is linear for the size of all heads' output.
      heads *= layers.inverse_size(config, out)[..., None]
      scale = layers.norm_scale(config, weights, 'attn_post_norm')
      outward *= scale[None, None]
    made = jnp.einsum('BTNH,NHD->BNTD', less(heads), outward)
    inputs = layers.mlp_inputs(mlp, layers.norm(
        config, weights, 'mlp_norm', layers.mlp_reads(config, x, middle)))
    out = layers.mlp_adds(config, weights, layers.activate(config, inputs))
    made = jnp.concatenate([made, less(out)[:, None]], 1)
    acts = jax.tree.map(take, _Acts(x, middle, projected, inputs))
    return middle + out, (acts, made)

  acts, made = [], []  # By group: splitting them later would copy them.
  for group in layer_groups(config.num_layers):
    x, (kept, given) = lax.scan(layer, x, jnp.asarray(group))
    acts.append(kept)
    made.append(given)
  return x, acts, made


def _of_layer(stacked: types.PyTree, number: Array) -> types.PyTree:
  """One layer of stacked arrays."""
  return jax.tree.map(
      lambda y: lax.dynamic_index_in_dim(y, number, keepdims=False), stacked)


def _float32(weights: types.Params) -> types.Params:
  """A layer's weights; the barrier keeps XLA from casting all layers ahead."""
  return jax.tree.map(
      lambda w: w.astype(jnp.float32), lax.optimization_barrier(weights))


def _backward(config, stacked, grads, acts, sources, places):
  """Scores [B, S, G] from the metric's gradients [P, B, T, D]."""
  scores = [_multiply(sources, grads.mean(0)[:, None])]  # Into the logits.
  size = scores[0].shape[1]
  for i, group in reversed(list(enumerate(layer_groups(config.num_layers)))):
    below = sources[:i + 2]  # The input, lower groups and this group.

    def step(g, at, below=below):
      number, kept = at
      g, targets = _layer_back(
          config, places.of_layer(config, number), g,
          _float32(_of_layer(stacked, number)), kept)
      return g, _multiply(below, targets)

    grads, met = lax.scan(
        step, grads, (jnp.asarray(group), acts[i]), reverse=True)
    met = jnp.moveaxis(met, 0, 2)  # [B, below, layers, 3 N + 1]
    met = met.reshape(*met.shape[:2], -1)
    scores.append(jnp.pad(met, ((0, 0), (0, size - met.shape[1]), (0, 0))))
  return is_edge(config)[None] * jnp.concatenate(scores[::-1], -1)


def _layer_back(config, places, g, weights, kept):
  """The backward pass of one layer.

  Each part is pulled back at the values that the forward pass kept, so that no
  projection is computed again.

  Args:
    config: the model's config.
    places: of the layer, for the rows.
    g: gradients after the layer, [P, B, T, D].
    weights: weights of the layer.
    kept: the layer's `_Acts`.

  Returns:
    Gradients before the layer; and gradients at the inputs of heads and MLP,
    averaged over points, [B, 3 N + 1, T, D].
  """
  by_point = lambda y: y.reshape(*g.shape[:2], *y.shape[1:])
  attn, mlp = weights['attn'], weights['mlp']
  back = g.reshape(-1, *g.shape[2:])
  back, = _pull(lambda inputs: layers.mlp_adds(
      config, weights, layers.activate(config, inputs)), kept.inputs, back)
  back, = _pull(lambda x: layers.mlp_inputs(
      mlp, layers.norm(config, weights, 'mlp_norm', x)),
                layers.mlp_reads(config, kept.x, kept.middle), back)
  g_mlp = by_point(back)
  back = (g if config.parallel else g + g_mlp).reshape(-1, *g.shape[2:])
  g = g + g_mlp
  each = functools.partial(layers.for_query_heads, config, axis=2)
  q, k, v = kept.projected
  projected = q, each(k), each(v)
  per_head = layers.of_query_heads(config, attn)
  back, = _pull(lambda some: layers.attn_adds(
      config, weights, layers.attend_projected(
          config, per_head, some, places)), projected, back)
  targets, g_attn = _attention_targets(
      config, weights, by_point(kept.x),
      *(tuple(map(by_point, some)) for some in (projected, back)))
  targets = jnp.concatenate([targets, g_mlp.mean(0)[:, None]], 1)
  return g + g_attn, targets


def _pull(function: Callable[..., Any], at: Any, back: Any) -> Any:
  """Pulls a cotangent back through a function of one argument."""
  return jax.vjp(function, at)[1](back)


def _multiply(sources: Sequence[Array], targets: Array) -> Array:
  """Scores [B, u, t] of sources [B, u, T D] and targets [B, t, T, D]."""
  targets = targets.reshape(*targets.shape[:2], -1)  # [B, t, T D]
  return jnp.concatenate([
      jnp.einsum('Bun,Btn->But', some, targets) for some in sources], 1)


def _attention_targets(
    config: model_config.ModelConfig,
    weights: types.Params,
    x: Array,  # [P, B, T, D]
    projected: Sequence[Array],  # Of q, k and v, each [P, B, T, N, H]
    backs: Sequence[Array],  # Their cotangents.
) -> tuple[Array, Array]:
  """Gradients at each input of attention, and their sum.

  A norm multiplies x by a scale and by a size that depends on x. So its
  cotangent has a part along the projection, and a part along the size's
  gradient, as long as the projections are. Points are averaged before any array
  of width D exists for each input, and all query heads of a group are pulled
  back together. `jax.vjp` of the norm for each input takes ten times as long,
  and jaxlib 0.10.2 miscompiles a vmap of it on CPU.

  Returns:
    Means over points [B, 3 N, T, D], and sums over inputs [P, B, T, D].
  """
  size, pull = jax.vjp(functools.partial(layers.inverse_size, config), x)
  gradient, = pull(jnp.ones_like(size))  # [P, B, T, D]
  own = [_without_norm_bias(config, weights, name, some)
         for name, some in zip('qkv', projected)]
  along = jnp.concatenate(
      [jnp.sum(a * b, -1) for a, b in zip(own, backs)], -1)
  along /= size  # [P, B, T, 3 N]
  scale = layers.norm_scale(config, weights, 'attn_norm')
  total, targets = 0, []
  for name, back in zip('qkv', backs):
    inward = weights['attn'][name] * scale[:, None, None]
    heads = inward.shape[1]
    native = back.reshape(*back.shape[:3], heads, -1, back.shape[-1]).sum(-2)
    total += jnp.einsum('PBTNH,DNH->PBTD', native, inward)
    mean = (back * size[..., None]).mean(0)
    if heads < config.num_heads:
      inward = layers.for_query_heads(config, inward, 1)
    targets.append(jnp.einsum('BTNH,DNH->BNTD', mean, inward))
  targets = layers.centre(config, jnp.concatenate(targets, 1)) + jnp.einsum(
      'PBTN,PBTD->BNTD', along, gradient) / len(x)
  total = layers.centre(config, size * total)
  return targets, total + gradient * along.sum(-1, keepdims=True)


def _without_norm_bias(
    config: model_config.ModelConfig, weights: types.Params, name: str,
    projected: Array) -> Array:
  """Projections [..., N, H] less what the bias of the norm gives."""
  bias = weights.get('attn_norm_bias')
  if bias is None:
    return projected
  given = jnp.einsum('D,DNH->NH', bias, weights['attn'][name])
  if name != 'q':
    given = layers.for_query_heads(config, given, 0)
  return projected - given[None, None, None]
