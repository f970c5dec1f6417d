"""From a circuit to its weights: index, gather, scatter, masks.

Two trees exist with the same leaf names: the full params, and the circuit
slices, whose unit axis (neuron, head) stands right behind L and is padded to
the fullest layer. Padding carries an index one past the end: gathering it
gives the fill value, scattering it is dropped.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph

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
  """Node numbers of one kind by layer, padded with the number of nodes."""

  nodes: types.Array  # [L, n] int32
  valid: types.Array  # [L, n] bool, False on padding


class CircuitIndex(NamedTuple):
  """A `UnitIndex` a kind of node; None where the circuit has none of it."""

  neurons: UnitIndex | None
  heads: UnitIndex | None
  kv_heads: UnitIndex | None


def make_index(circuit: graph.Circuit) -> CircuitIndex:
  """Pads each layer's node numbers to those of the fullest layer."""

  def padded(mask: np.ndarray) -> UnitIndex | None:
    counts = mask.sum(1)
    if not counts.max():
      return None
    nodes = np.full((mask.shape[0], counts.max()), mask.shape[1], np.int32)
    for layer, row in enumerate(mask):
      nodes[layer, :counts[layer]] = np.flatnonzero(row)
    return UnitIndex(jnp.asarray(nodes), jnp.asarray(nodes < mask.shape[1]))

  return CircuitIndex(*(padded(circuit[kind]) for kind in graph.KINDS))


def _owned(index: CircuitIndex) -> dict[str, tuple[UnitIndex, int]]:
  """`{leaf name: (unit index, unit axis)}` of the leaves the circuit owns."""
  return {name: (getattr(index, kind), axis)
          for name, (kind, axis) in UNIT_AXIS.items()
          if getattr(index, kind) is not None}


def gather(params: types.Params, index: CircuitIndex) -> types.Params:
  """Takes the circuit's slices of a tree shaped like the params.

  Args:
    params: full tree (weights, or a code grid's codes, scales, frozen flags).
    index: from `make_index`.

  Returns:
    Slices; padding is 0, and True in boolean leaves (a padded entry counts as
    frozen). Leaves that are None stay None.
  """
  flat = tree_paths.flatten(params)

  def take(leaf, nodes, axis):
    fill = True if leaf.dtype == jnp.bool_ else 0
    taken = jnp.take(leaf, nodes, axis, mode='fill', fill_value=fill)
    return jnp.moveaxis(taken, axis, 0)

  out = {}
  for name, (unit, axis) in _owned(index).items():
    leaf = flat[name]
    out[name] = None if leaf is None else jax.vmap(
        take, in_axes=(0, 0, None))(leaf, unit.nodes, axis)
  return tree_paths.unflatten(out)


def scatter(
    params: types.Params, index: CircuitIndex,
    slices: types.Params) -> types.Params:
  """Puts slices back into the full params; padding is dropped."""
  flat = tree_paths.flatten(params)
  flat_slices = tree_paths.flatten(slices)

  def put(leaf, nodes, values, axis):
    values = jnp.moveaxis(values, 0, axis).astype(leaf.dtype)
    where = (slice(None),) * axis + (nodes,)
    return leaf.at[where].set(values, mode='drop')

  for name, (unit, axis) in _owned(index).items():
    flat[name] = jax.vmap(put, in_axes=(0, 0, 0, None))(
        flat[name], unit.nodes, flat_slices[name], axis)
  return tree_paths.unflatten(flat)


def slice_mask(index: CircuitIndex, slices: types.Params) -> types.Params:
  """The circuit mask of slices: False on padding; broadcasts on the leaf."""
  owned = _owned(index)

  def mask(name, leaf):
    valid = owned[name][0].valid
    return valid.reshape(valid.shape + (1,) * (leaf.ndim - 2))

  return tree_paths.map_named(mask, slices)


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


def make_frame(circuit: graph.Circuit) -> types.Params:
  """What the decoder needs beside the slices: which units they replace.

  Returns:
    `{'layers': {'mlp': {'keep'}, 'attn': {'head_onehot', 'kv_onehot'}}}`,
    float32, of the kinds that the circuit has.
  """
  out = {}
  index = make_index(circuit)
  if index.neurons is not None:
    out['layers/mlp/keep'] = jnp.asarray(~circuit.neurons, jnp.float32)
  for kind, name in (('heads', 'head_onehot'), ('kv_heads', 'kv_onehot')):
    unit = getattr(index, kind)
    if unit is not None:  # one_hot of the padding number is a zero row.
      out[f'layers/attn/{name}'] = jax.nn.one_hot(
          unit.nodes, circuit[kind].shape[1])
  return tree_paths.unflatten(out)


def collection(slices: types.Params, frame: types.Params) -> types.Params:
  """The decoder's `circuit` collection: slices and frame in one tree."""
  return tree_paths.unflatten(
      {**tree_paths.flatten(slices), **tree_paths.flatten(frame)})
