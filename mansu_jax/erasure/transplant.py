"""Runs a base model on states of another model or of another fact.

By causality the states of earlier tokens do not depend on the last token. A
state that is put in at the last token is therefore one more token of the row,
at the last position, which attends to the earlier positions and to itself. A
row can hold several of them, and the earlier tokens run once for all.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.erasure import spans
from mansu_jax.models import blocks
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layers
from mansu_jax.models import places as places_lib

# By default, TPUs multiply in bfloat16.
exact = functools.partial(jax.default_matmul_precision, 'float32')


class States(NamedTuple):
  """A model's states at the rows of a batch."""

  before: types.Array  # [B, W, D], residual stream before the layer
  after: types.Array  # [B, D], after it, at the last token
  final: types.Array  # [B, D], after all layers, at the last token


@functools.partial(jax.jit, static_argnames='config')
def picks(
    config: model_config.ModelConfig, params: types.Params, x: types.Array,
    choices: types.Array, sources: types.Array) -> types.Array:
  """The choices with the largest logits, int [K, B, V].

  Args:
    config: the model's config; static.
    params: full params, whose head reads.
    x: last-token states, [B, V, D].
    choices: first tokens of the choices of each row's question, [B, C].
    sources: K times the row whose states each question is asked of, int [K, B].
  """
  with exact():
    ask = lambda source: jnp.argmax(
        choice_logits(config, params, x[source], choices), axis=-1)
    return jax.lax.map(ask, sources)


def choice_logits(
    config: model_config.ModelConfig, params: types.Params, x: types.Array,
    choices: types.Array) -> types.Array:
  """Logits of the choices, float32 [B, V, C].

  Args:
    config: the model's config.
    params: full params.
    x: residual stream, [B, V, D].
    choices: first tokens of the choices, [B, C].
  """
  hidden = layers.norm(config, params, 'final_norm', x)
  table = params.get('lm_head', params['embed'])
  logits = jnp.einsum('BVD,BCD->BVC', hidden.astype(jnp.float32),
                      table[choices].astype(jnp.float32))
  return layers.soft_cap(logits, config.logits_soft_cap)


def at_last(x: types.Array, rows: spans.Rows) -> types.Array:
  """States [B, D] at the last tokens, of [B, W or more, D]."""
  return jnp.take_along_axis(
      x, (rows.lengths - 1)[:, None, None], axis=1)[:, 0]


def positions(rows: spans.Rows, more: int) -> types.Array:
  """Positions of the rows' tokens and of `more` last tokens, [B, W + more]."""
  size, width = rows.tokens.shape
  return jnp.concatenate([
      jnp.broadcast_to(jnp.arange(width), (size, width)),
      jnp.broadcast_to(rows.lengths[:, None] - 1, (size, more))], axis=1)


def mask(rows: spans.Rows, more: int) -> types.Array:
  """Where these tokens may attend, bool [B, W + more, W + more].

  The added last tokens attend to the positions before the last one and to
  themselves; no other token attends to them.
  """
  size, width = rows.tokens.shape
  earlier = jnp.arange(width)[None] < rows.lengths[:, None] - 1  # [B, W]
  causal = jnp.tril(jnp.ones((width, width), bool))
  top = jnp.pad(causal, [(0, 0), (0, more)])
  bottom = jnp.concatenate([
      jnp.broadcast_to(earlier[:, None], (size, more, width)),
      jnp.broadcast_to(jnp.eye(more, dtype=bool), (size, more, more))], axis=2)
  return jnp.concatenate([
      jnp.broadcast_to(top, (size, *top.shape)), bottom], axis=1)


def _scan(config, params, x, rows, more, first, after_each, kept):
  """Runs the layers from `first` on, on rows with `more` added tokens.

  One loop over all layers compiles faster than a loop for those before, at and
  behind the mover layer each.

  Args:
    config: the model's config.
    params: full params.
    x: residual stream before layer `first`.
    rows: the prompts.
    more: number of added tokens.
    first: first layer to run.
    after_each: `(layer, x before, x after, kept) -> (x, kept)`.
    kept: what `after_each` carries along.

  Returns:
    The residual stream after all layers, and `kept`.
  """
  places = places_lib.find(config, positions(rows, more), mask(rows, more))
  block = blocks.Block(config)

  def one(carry, index):
    x, kept = carry
    weights = jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(
        leaf, index, keepdims=False), params['layers'])
    new, _ = block.apply({'params': weights}, x, index, places)
    return after_each(index, x, new, kept), None

  carry, _ = jax.lax.scan(
      one, (x, kept), jnp.arange(first, config.num_layers))
  return carry


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def run(
    config: model_config.ModelConfig, params: types.Params, rows: spans.Rows,
    layer: int) -> States:
  """Runs a model and keeps its states around a layer.

  Args:
    config: the model's config; static.
    params: full params.
    rows: the prompts.
    layer: the layer; static.
  """
  with exact():
    x = decoder.embed(config, params, rows.tokens).astype(jnp.float32)

    def keep(index, old, new, kept):
      before, after = kept
      here = index == layer
      return new, (jnp.where(here, old, before),
                   jnp.where(here, at_last(new, rows), after))

    x, (before, after) = _scan(
        config, params, x, rows, 0, 0, keep, (x, at_last(x, rows)))
    return States(before, after, at_last(x, rows))


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def read_by_base(
    config: model_config.ModelConfig, params: types.Params,
    base: types.Array, given: States, rows: spans.Rows, layer: int
) -> types.Array:
  """Last-token states [B, 2, D] of the base with states of another model.

  First, with the values that the layer's attention brings from the span to the
  last token taken from the other model; second, with its last-token state after
  the layer.

  Args:
    config: the models' config; static.
    params: the base's params.
    base: the base's states before the layer, [B, W, D].
    given: the other model's states around the layer.
    rows: the prompts.
    layer: the layer; static.
  """
  with exact():
    read = with_values(config, params, base, given.before, rows, layer)
    added = jnp.stack([read, given.after], axis=1)

    def put_in(index, old, new, kept):
      del old  # Nothing reads the added tokens before they are put in.
      return new.at[:, -2:].set(
          jnp.where(index == layer, added, new[:, -2:])), kept

    x = jnp.concatenate([base, jnp.zeros_like(added)], axis=1)
    x, _ = _scan(config, params, x, rows, 2, layer, put_in, ())
    return x[:, -2:]


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def replaced(
    config: model_config.ModelConfig, params: types.Params, base: types.Array,
    source: types.Array, rows: spans.Rows, layer: int) -> types.Array:
  """The base's last-token states [B, D] with other rows' states at the span.

  The last token keeps its own state before the layer.

  Args:
    config: the model's config; static.
    params: the base's params.
    base: the base's states before the layer, [B, W, D].
    source: the row whose states each row gets, int [B].
    rows: the prompts.
    layer: the layer; static.
  """
  with exact():
    x = jnp.where(_inside(base, rows)[..., None], base[source], base)
    x, _ = _scan(config, params, x, rows, 0, layer,
                 lambda index, old, new, kept: (new, kept), ())
    return at_last(x, rows)


def _inside(x: types.Array, rows: spans.Rows) -> types.Array:
  """Which positions of [B, W, D] lie in the span, [B, W]."""
  at = jnp.arange(x.shape[1])[None]
  return (at >= rows.starts[:, None]) & (at < rows.lengths[:, None] - 1)


def with_values(
    config: model_config.ModelConfig, params: types.Params,
    base: types.Array, given: types.Array, rows: spans.Rows, layer: int
) -> types.Array:
  """Last-token states [B, D] after a layer whose values come from elsewhere.

  The layer's own norm and value weights map the given states, so that its heads
  read what the states hold. Queries, keys, and values off the span are those of
  the base's states. Arguments as for `read_by_base`.
  """
  weights = _layer(params, layer)
  last = at_last(base, rows)[:, None]
  return _attended(
      config, weights, last, base, weights,
      jnp.where(_inside(base, rows)[..., None], given, base), last,
      (rows.lengths - 1)[:, None], layer)[:, 0]


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def routed(
    config: model_config.ModelConfig, base: types.Params, before: types.Array,
    params: types.Params, given: types.Array, reads: types.Params,
    rows: spans.Rows, layer: int) -> types.Array:
  """Runs a model whose layer attends as the base's.

  Its states before the layer and its layers above are its own.

  Args:
    config: the models' config; static.
    base: the base's params.
    before: the base's states before the layer, [B, W, D].
    params: the model's params.
    given: the model's states before the layer, [B, W, D].
    reads: params of all else in the layer: the base's or the model's own.
    rows: the prompts.
    layer: the layer; static.

  Returns:
    Last-token states after the layer and after each one above,
    [B, L - layer, D].
  """
  with exact():
    x = _attended(
        config, _layer(base, layer), before, before, _layer(reads, layer),
        given, given, positions(rows, 0), layer)
    start = jnp.broadcast_to(
        at_last(x, rows), (config.num_layers - layer, *given[:, 0].shape))

    def keep(index, old, new, kept):
      del old
      return new, kept.at[index - layer].set(at_last(new, rows))

    _, lasts = _scan(config, params, x, rows, 0, layer + 1, keep, start)
    return jnp.moveaxis(lasts, 0, 1)


def _layer(params: types.Params, layer: int) -> types.Params:
  return jax.tree.map(lambda w: w[layer], params['layers'])


def _attended(
    config: model_config.ModelConfig, looks: types.Params, queries: types.Array,
    keys: types.Array, reads: types.Params, values: types.Array,
    residual: types.Array, at: types.Array, layer: int) -> types.Array:
  """`layers.look_and_read` of queries at the positions `at`, int [B, Q]."""
  every = jnp.arange(keys.shape[1])[None]  # [1, W]
  places = places_lib.find(
      config, at, every[:, None] <= at[..., None], every)
  return layers.look_and_read(
      config, looks, queries, keys, reads, values, residual,
      places.of_layer(config, layer))
