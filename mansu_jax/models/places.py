"""Where tokens stand and what each may read, for every kind of layer.

Layers differ in kind if some attend within a window only. A model computes the
rotary tables and the mask of each kind once, and each layer picks its own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import rotary

Array = types.Array


class Places(NamedTuple):
  """Rotary tables and mask; of one layer, without the leading axis.

  Attributes:
    queries: rotary tables of tokens that read, each [kinds, B, T, 1, H / 2].
    keys: of tokens that are read, each [kinds, B, S, 1, H / 2].
    mask: where a token may attend, bool [kinds, B, 1, 1, T, S].
  """

  queries: rotary.Tables
  keys: rotary.Tables
  mask: Array

  def of_layer(
      self, config: config_lib.ModelConfig, layer: int | Array) -> Places:
    """What one layer uses."""
    if len(config.kinds) == 1:
      return jax.tree.map(lambda leaf: leaf[0], self)
    kind = jnp.asarray(config.kind_of_layer)[layer]
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(
        leaf, kind, keepdims=False), self)

  def rows(self, rows: Array) -> Places:
    """Those of some rows; arrays of one row for all stay."""
    return jax.tree.map(
        lambda leaf: leaf if leaf.shape[1] == 1 else leaf[:, rows], self)

  def followed_by(self, other: Places) -> Places:
    """Those of these rows, then of others."""
    return jax.tree.map(
        lambda a, b: a if a.shape[1] == 1 else jnp.concatenate([a, b], 1),
        self, other)


def find(
    config: config_lib.ModelConfig,
    positions: Array,  # [B or 1, T] int
    mask: Array,  # [B or 1, T, S] bool
    keys: Array | None = None,  # [B or 1, S] int
    remembered: Array | None = None,  # [B or 1, S] int
) -> Places:
  """The places of rows of tokens.

  Args:
    config: Config of the model.
    positions: Of the tokens that read.
    mask: Where they may attend, apart from windows.
    keys: Positions of the tokens that are read; by default the same tokens.
    remembered: Positions of the tokens that are read, if a cache has the keys
      of all but those that read.
  """
  read = next(
      x for x in (remembered, keys, positions) if x is not None)
  tables, masks = [], []
  for kind in config.kinds:
    own = rotary.tables(config, positions, kind)
    tables.append((own, own if keys is None else rotary.tables(
        config, keys, kind)))
    masks.append(mask if not kind.window else mask & (
        positions[:, :, None] - read[:, None] < kind.window))
  stack = lambda *some: jnp.stack(some)
  queries, of_keys = jax.tree.map(stack, *tables)
  return Places(queries, of_keys, stack(*masks)[:, :, None, None])


def causal(length: int) -> Array:
  """The mask of a row of tokens, bool [1, T, T]."""
  return jnp.tril(jnp.ones((1, length, length), bool))


def packed(
    positions: Array,  # [B, T] int32, within the segment
    segments: Array,  # [B, T] int32, segment number of each token
) -> Array:
  """Causal mask of packed rows, bool [B, T, T]: tokens read their segment."""
  same = segments[:, :, None] == segments[:, None, :]
  before = positions[:, :, None] >= positions[:, None, :]
  return same & before
