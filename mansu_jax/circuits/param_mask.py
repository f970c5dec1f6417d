"""From a circuit to its weights: index, gather, scatter, masks.

Three trees exist with the same leaf names: the full params; the circuit
slices, whose leading axis is the circuit's units (neurons, heads) one after
the other, layer by layer; and the slices spread over the C layers of the
circuit's span, as a scan over layers wants them, padded to the fullest layer.
Only the second is trained: optimizer state has no padding.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.runtime import sharding

# leaf name -> (kind of its unit, unit axis within one layer).
UNIT_AXIS = {
    'layers/mlp/gate': ('neurons', 1),  # [D, F]
    'layers/mlp/up': ('neurons', 1),  # [D, F]
    'layers/mlp/down': ('neurons', 0),  # [F, D]
    'layers/attn/q': ('heads', 1),  # [D, N, H]
    'layers/attn/o': ('heads', 0),  # [N, H, D]
    'layers/attn/k': ('kv_heads', 1),  # [D, K, H]
    'layers/attn/v': ('kv_heads', 1),  # [D, K, H]
}


class UnitIndex(NamedTuple):
  """The S units of one kind, and where those of each layer are among them."""

  layers: types.Array  # [S] int32, ascending
  nodes: types.Array  # [S] int32, number within the layer
  places: types.Array  # [C, n] int32; S on padding


class CircuitIndex(NamedTuple):
  """A `UnitIndex` a kind of node; None where the circuit has none of it."""

  neurons: UnitIndex | None
  heads: UnitIndex | None
  kv_heads: UnitIndex | None


def make_index(circuit: graph.Circuit) -> CircuitIndex:
  """Lists each kind's units, and their places by layer of the span."""
  span = slice(*circuit.span)

  def listed(mask: np.ndarray) -> UnitIndex | None:
    counts = mask.sum(1)
    if not counts.max():
      return None
    layers, nodes = np.nonzero(mask)
    column = np.arange(counts.max())
    places = np.where(
        column < counts[:, None],
        (np.cumsum(counts) - counts)[:, None] + column, nodes.size)
    return UnitIndex(*(jnp.asarray(x, jnp.int32)
                       for x in (layers, nodes, places[span])))

  return CircuitIndex(*(listed(circuit[kind]) for kind in graph.KINDS))


def _owned(index: CircuitIndex) -> dict[str, tuple[UnitIndex, int]]:
  """`{leaf name: (unit index, unit axis)}` of the leaves the circuit owns."""
  return {name: (getattr(index, kind), axis)
          for name, (kind, axis) in UNIT_AXIS.items()
          if getattr(index, kind) is not None}


def _at(unit: UnitIndex, axis: int) -> tuple[Any, ...]:
  """Subscript of a full leaf [L, ...] that gives or takes slices [S, ...]."""
  return (unit.layers, *(slice(None),) * axis, unit.nodes)


def gather(params: types.Params, index: CircuitIndex) -> types.Params:
  """Takes the circuit's slices of a tree shaped like the params.

  Args:
    params: full tree (weights, or a code grid's codes, scales, frozen flags).
    index: from `make_index`.

  Returns:
    Slices [S, ...]. Leaves that are None stay None.
  """
  flat = tree_paths.flatten(params)
  return tree_paths.unflatten({
      name: None if flat[name] is None else gather_leaf(name, flat[name], index)
      for name in _owned(index)})


@functools.partial(jax.jit, static_argnums=(0, 3))
def gather_leaf(
    name: str, leaf: types.Array, index: CircuitIndex, run: int = 1
) -> types.Array:
  """The slices [S, ...] of one leaf that the circuit owns units of.

  Args:
    name: of the leaf.
    leaf: [L, ...]; along the unit axis an entry stands for `run` units.
    index: from `make_index`.
    run: see `quant.LeafGrid`.
  """
  unit, axis = _owned(index)[name]
  return leaf[_at(unit._replace(nodes=unit.nodes // run), axis)]


def gather_grid(
    name: str, grid: quant.LeafGrid, index: CircuitIndex) -> quant.LeafGrid:
  """The grid of a leaf's slices; runs along other axes stay."""
  _, axis = _owned(index)[name]
  run = grid.shape[axis + 1] // grid.shared.scale.shape[axis + 1]
  take = lambda part: gather_leaf(name, part, index, run)
  shared = jax.tree.map(take, grid.shared)
  shape = list(grid.shape[1:])
  del shape[axis]
  return dataclasses.replace(
      grid, shared=shared, shape=(shared.scale.shape[0], *shape))


def only_owned(params: types.PyTree, index: CircuitIndex) -> types.PyTree:
  """The leaves of a tree like the params that have slices."""
  flat = tree_paths.flatten(params)
  return tree_paths.unflatten({name: flat[name] for name in _owned(index)})


def scatter(
    params: types.Params, index: CircuitIndex,
    slices: types.Params) -> types.Params:
  """Full params with slices put in; they share what the circuit does not own.

  Not to be jitted as a whole: that would copy all else too.
  """
  flat, parts = tree_paths.flatten(params), tree_paths.flatten(slices)
  return tree_paths.unflatten(flat | {
      name: scatter_leaf(name, flat[name], parts[name], index)
      for name in _owned(index)})


@functools.partial(jax.jit, static_argnums=0)
def scatter_leaf(
    name: str, leaf: types.Array, slices: types.Array, index: CircuitIndex
) -> types.Array:
  """A leaf [L, ...] with its slices [S, ...] put in.

  A layer at a time, each node asking for its slice. A scatter into all layers
  would say the same, but the TPU's compiler (libtpu 0.0.52) gives up on one of
  heads of bfloat16.
  """
  unit, axis = _owned(index)[name]
  slices = slices.astype(leaf.dtype)
  count = unit.layers.size
  rows = jnp.full((leaf.shape[0], leaf.shape[axis + 1]), count, jnp.int32)
  rows = rows.at[unit.layers, unit.nodes].set(
      jnp.arange(count, dtype=jnp.int32), unique_indices=True)

  def layer(args):
    own, rows = args
    values = jnp.moveaxis(
        slices.at[rows].get(mode='fill', fill_value=0), 0, axis)
    shape = [1] * own.ndim
    shape[axis] = rows.size
    return jnp.where((rows < count).reshape(shape), values, own)

  return jax.lax.map(layer, (leaf, rows))


def moved(before: types.Params, after: types.Params) -> dict[str, np.ndarray]:
  """How many of each node's weights differ, by kind [L, nodes]."""
  out = {}
  flat, flat_after = tree_paths.flatten(before), tree_paths.flatten(after)
  for name, (kind, axis) in UNIT_AXIS.items():
    others = tuple(
        i for i in range(1, flat[name].ndim) if i != axis + 1)
    out[kind] = out.get(kind, 0) + sharding.to_host(_differing(
        flat[name], flat_after[name], others))
  return out


@functools.partial(jax.jit, static_argnums=2)
def _differing(one, other, axes):
  return jnp.sum(one != other, axes)


def spread(slices: types.Params, index: CircuitIndex) -> types.Params:
  """Slices [S, ...] by layer of the span, [C, n, ...]; padding is 0."""
  owned = _owned(index)
  return tree_paths.map_named(
      lambda name, leaf: leaf.at[owned[name][0].places].get(
          mode='fill', fill_value=0), slices)


def full_mask(circuit: graph.Circuit, params: types.Params) -> types.Params:
  """The circuit mask of the full params; broadcasts on every leaf."""

  def mask(name, leaf):
    if name not in UNIT_AXIS:
      return jnp.zeros((1,) * leaf.ndim, bool)
    kind, axis = UNIT_AXIS[name]
    shape = [1] * leaf.ndim
    shape[0], shape[axis + 1] = circuit[kind].shape
    return jnp.asarray(circuit[kind]).reshape(shape)

  return tree_paths.map_named(mask, params)


def slice_mask(
    movable: dict[str, np.ndarray], index: CircuitIndex) -> types.Params:
  """Which slices may move, where a unit owns them and not all may.

  Args:
    movable: bool [L, nodes] by leaf name.
    index: from `make_index`.

  Returns:
    A tree like the slices, bool [S, 1, ...].
  """
  out = {}
  for name, (unit, _) in _owned(index).items():
    chosen = movable[name][np.asarray(unit.layers), np.asarray(unit.nodes)]
    axes = 1 if name.startswith('layers/mlp') else 2  # Of one slice.
    out[name] = jnp.asarray(chosen.reshape(-1, *(1,) * axes))
  return tree_paths.unflatten(out)


def make_replacement_masks(circuit: graph.Circuit) -> types.Params:
  """What the decoder needs beside the slices: which units they replace.

  Returns:
    `{'layers': {'mlp': {'keep'}, 'attn': {'head_onehot', 'kv_onehot'}}}`,
    float32, of the kinds that the circuit has and the layers of its span.
  """
  out = {}
  index = make_index(circuit)
  if index.neurons is not None:
    outside = ~circuit.neurons[slice(*circuit.span)]
    out['layers/mlp/keep'] = jnp.asarray(outside, jnp.float32)
  for kind, name in (('heads', 'head_onehot'), ('kv_heads', 'kv_onehot')):
    unit = getattr(index, kind)
    if unit is not None:  # A zero row on padding.
      onehot = jax.nn.one_hot(unit.nodes, circuit[kind].shape[1])
      out[f'layers/attn/{name}'] = onehot.at[unit.places].get(
          mode='fill', fill_value=0)
  return tree_paths.unflatten(out)


def collection(
    slices: types.Params, index: CircuitIndex,
    replacement_masks: types.Params) -> types.Params:
  """The decoder's `circuit` collection: spread slices and replacement_masks in a tree."""
  return tree_paths.unflatten({
      **tree_paths.flatten(spread(slices, index)),
      **tree_paths.flatten(replacement_masks)})
