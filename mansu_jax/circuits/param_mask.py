"""The weights of a circuit: index, gather, scatter and masks.

Three trees have the same leaf names:

* the full params;
* the circuit's slices, with the circuit's units (neurons, heads), layer by
  layer, on the leading axis;
* the slices spread over the C layers of the circuit's span, padded to the
  fullest layer, for a scan over layers.

Only the slices are trained, so optimizer state has no padding.

Example:
  Zeroes the weights of two neurons and of a head.

  >>> from mansu_jax.models import config as model_config
  >>> from mansu_jax.models import decoder
  >>> config = model_config.ModelConfig(
  ...     vocab_size=16, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1,
  ...     d_head=4, d_ff=12)
  >>> params = decoder.init(config, jax.random.key(0))
  >>> circuit = graph.empty(config)
  >>> circuit.neurons[0, [3, 5]] = True
  >>> circuit.heads[1, 0] = True
  >>> index = make_index(circuit)
  >>> slices = gather(params, index)
  >>> slices['layers']['mlp']['down'].shape  # 2 of 2 * 12 neurons, [S, D]
  (2, 8)
  >>> edited = scatter(params, index, jax.tree.map(jnp.zeros_like, slices))
  >>> {kind: int(count.sum()) for kind, count in moved(params, edited).items()}
  {'neurons': 48, 'heads': 64, 'kv_heads': 0}
"""

from __future__ import annotations

from collections.abc import Container
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
from mansu_jax.models import layout
from mansu_jax.runtime import sharding



class UnitIndex(NamedTuple):
  """The S units of one kind, and their positions by layer."""

  layers: types.Array  # [S] int32, ascending
  nodes: types.Array  # [S] int32, number within the layer
  positions: types.Array  # [C, n] int32, positions among the S; S on padding


class CircuitIndex(NamedTuple):
  """A `UnitIndex` per kind of node; None if the circuit has no such node."""

  neurons: UnitIndex | None
  heads: UnitIndex | None
  kv_heads: UnitIndex | None


def make_index(circuit: graph.Circuit) -> CircuitIndex:
  """Lists the units of each kind, and their positions by layer of the span."""
  span = slice(*circuit.span)

  def listed(mask: np.ndarray) -> UnitIndex | None:
    counts = mask.sum(1)
    if not counts.max():
      return None
    layers, nodes = np.nonzero(mask)
    column = np.arange(counts.max())
    positions = np.where(
        column < counts[:, None],
        (np.cumsum(counts) - counts)[:, None] + column, nodes.size)
    return UnitIndex(*(jnp.asarray(x, jnp.int32)
                       for x in (layers, nodes, positions[span])))

  return CircuitIndex(*(listed(circuit[kind]) for kind in graph.KINDS))


def _owned(
    index: CircuitIndex, names: Container[str] = layout.UNIT_AXIS
) -> dict[str, tuple[UnitIndex, int]]:
  """`{leaf name: (unit index, unit axis)}` of the leaves the circuit owns.

  Args:
    index: from `make_index`.
    names: of the model's leaves: an MLP may have no gate.
  """
  return {name: (getattr(index, kind), axis)
          for name, (kind, axis) in layout.UNIT_AXIS.items()
          if getattr(index, kind) is not None and name in names}


def _at(unit: UnitIndex, axis: int) -> tuple[Any, ...]:
  """Subscript of the slices [S, ...] in a full leaf [L, ...]."""
  return (unit.layers, *(slice(None),) * axis, unit.nodes)


def gather(params: types.Params, index: CircuitIndex) -> types.Params:
  """Takes the circuit's slices from a tree shaped like the params.

  Args:
    params: full tree (weights, or a code grid's codes, scales, frozen flags).
    index: from `make_index`.

  Returns:
    Slices [S, ...]. Leaves that are None stay None.
  """
  flat = tree_paths.flatten(params)
  return tree_paths.unflatten({
      name: None if flat[name] is None else gather_leaf(name, flat[name], index)
      for name in _owned(index, flat)})


@functools.partial(jax.jit, static_argnums=(0, 3))
def gather_leaf(
    name: str, leaf: types.Array, index: CircuitIndex, run: int = 1
) -> types.Array:
  """The circuit's slices [S, ...] of one leaf.

  Args:
    name: name of the leaf, in `layout.UNIT_AXIS`.
    leaf: [L, ...]; an entry along the unit axis stands for `run` units.
    index: from `make_index`.
    run: see `quant.LeafGrid`.
  """
  unit, axis = _owned(index)[name]
  return leaf[_at(unit._replace(nodes=unit.nodes // run), axis)]


def gather_grid(
    name: str, grid: quant.LeafGrid, index: CircuitIndex) -> quant.LeafGrid:
  """The code grid of a leaf's slices; runs along other axes stay."""
  _, axis = _owned(index)[name]
  run = grid.shape[axis + 1] // grid.shared.scale.shape[axis + 1]
  take = lambda part: gather_leaf(name, part, index, run)
  shared = jax.tree.map(take, grid.shared)
  shape = list(grid.shape[1:])
  del shape[axis]
  return dataclasses.replace(
      grid, shared=shared, shape=(shared.scale.shape[0], *shape))


def only_owned(params: types.PyTree, index: CircuitIndex) -> types.PyTree:
  """The leaves that have slices, of a tree shaped like the params."""
  flat = tree_paths.flatten(params)
  return tree_paths.unflatten({
      name: flat[name] for name in _owned(index, flat)})


def scatter(
    params: types.Params, index: CircuitIndex,
    slices: types.Params) -> types.Params:
  """Full params with the slices put in; all other leaves are shared.

  Do not jit this function as a whole: jit would copy the shared leaves.
  """
  flat, parts = tree_paths.flatten(params), tree_paths.flatten(slices)
  return tree_paths.unflatten(flat | {
      name: scatter_leaf(name, flat[name], parts[name], index)
      for name in _owned(index, flat)})


@functools.partial(jax.jit, static_argnums=0)
def scatter_leaf(
    name: str, leaf: types.Array, slices: types.Array, index: CircuitIndex
) -> types.Array:
  """A leaf [L, ...] with its slices [S, ...] put in.

  Works layer by layer: each node looks up its slice. One scatter into all
  layers would be equivalent, but the TPU compiler (libtpu 0.0.52) fails on a
  scatter of bfloat16 heads.
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
  """Number of each node's weights that differ, by kind [L, nodes]."""
  out = {}
  flat, flat_after = tree_paths.flatten(before), tree_paths.flatten(after)
  for name, (kind, axis) in layout.UNIT_AXIS.items():
    if name not in flat:
      continue
    others = tuple(
        i for i in range(1, flat[name].ndim) if i != axis + 1)
    out[kind] = out.get(kind, 0) + sharding.to_host(_differing(
        flat[name], flat_after[name], others))
  return out


@functools.partial(jax.jit, static_argnums=2)
def _differing(one, other, axes):
  return jnp.sum(one != other, axes)


def spread(slices: types.Params, index: CircuitIndex) -> types.Params:
  """Slices [S, ...] by layer of the span, [C, n, ...], padded with 0."""
  owned = _owned(index)
  return tree_paths.map_named(
      lambda name, leaf: leaf.at[owned[name][0].positions].get(
          mode='fill', fill_value=0), slices)


def full_mask(circuit: graph.Circuit, params: types.Params) -> types.Params:
  """The circuit as masks that broadcast against the full params.

  For `transforms.mask_to_circuit`, if full params are trained instead of
  slices.

  Args:
    circuit: the circuit.
    params: full params, or their shapes.

  Returns:
    A tree like the params, bool.

  Example:
    >>> from mansu_jax.models import config as model_config
    >>> from mansu_jax.models import decoder
    >>> config = model_config.ModelConfig(
    ...     vocab_size=16, d_model=8, num_layers=1, num_heads=2, num_kv_heads=1,
    ...     d_head=4, d_ff=3)
    >>> circuit = graph.empty(config)
    >>> circuit.neurons[0, 1] = True
    >>> mask = full_mask(circuit, decoder.abstract(config))
    >>> mask['layers']['mlp']['up'].tolist()  # [L, 1, F], against [L, D, F]
    [[[False, True, False]]]
  """

  def mask(name, leaf):
    if name not in layout.UNIT_AXIS:
      return jnp.zeros((1,) * leaf.ndim, bool)
    kind, axis = layout.UNIT_AXIS[name]
    shape = [1] * leaf.ndim
    shape[0], shape[axis + 1] = circuit[kind].shape
    return jnp.asarray(circuit[kind]).reshape(shape)

  return tree_paths.map_named(mask, params)


def slice_mask(
    movable: dict[str, np.ndarray], index: CircuitIndex) -> types.Params:
  """The slices that may change, if not all slices of a unit may.

  Args:
    movable: whether a node's slice of a leaf may change, bool [L, nodes] by
      leaf name.
    index: from `make_index`.

  Returns:
    A tree like the slices, bool [S, 1, ...].
  """
  out = {}
  for name, (unit, _) in _owned(index, movable).items():
    chosen = movable[name][np.asarray(unit.layers), np.asarray(unit.nodes)]
    axes = 1 if name.startswith('layers/mlp') else 2  # Axes of a slice.
    out[name] = jnp.asarray(chosen.reshape(-1, *(1,) * axes))
  return tree_paths.unflatten(out)


def make_replacement_masks(circuit: graph.Circuit) -> types.Params:
  """Masks by which the decoder replaces units with the circuit's slices.

  Returns:
    `{'layers': {'mlp': {'keep'}, 'attn': {'head_onehot', 'kv_onehot'}}}`,
    float32, for the kinds of node in the circuit and the layers of its span.
  """
  out = {}
  index = make_index(circuit)
  if index.neurons is not None:
    outside = ~circuit.neurons[slice(*circuit.span)]
    out['layers/mlp/keep'] = jnp.asarray(outside, jnp.float32)
  for kind, name in (('heads', 'head_onehot'), ('kv_heads', 'kv_onehot')):
    unit = getattr(index, kind)
    if unit is not None:  # Padding gets a row of zeros.
      onehot = jax.nn.one_hot(unit.nodes, circuit[kind].shape[1])
      out[f'layers/attn/{name}'] = onehot.at[unit.positions].get(
          mode='fill', fill_value=0)
  return tree_paths.unflatten(out)


def collection(
    slices: types.Params, index: CircuitIndex,
    replacement_masks: types.Params) -> types.Params:
  """The decoder's `circuit` collection: spread slices and their masks.

  Args:
    slices: from `gather`.
    index: from `make_index`.
    replacement_masks: from `make_replacement_masks`.
  """
  return tree_paths.unflatten({
      **tree_paths.flatten(spread(slices, index)),
      **tree_paths.flatten(replacement_masks)})
