"""The quantization grid of a set of weights, held fixed while they move.

A `CodeGrid` is made once from the full theta_0 and holds the scales of its
blocks. As long as the weights that set a scale do not move, and no other weight
leaves its block's range, the grid gives exactly the values that the quantizer
decodes. It needs no blocks: circuit slices of the grid can be gathered together
with slices of the weights, although a block of `down` spans 64 neurons.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from mansu_jax.quant import blockwise
from mansu_jax.quant import devices
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib

PyTree = leaves.PyTree


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=('shared',),
    meta_fields=('scheme', 'shape'))
@dataclasses.dataclass(frozen=True, eq=False)
class LeafGrid:
  """The grid of one leaf.

  Attributes:
    shared: parameters of the block of each weight. Arrays have the axes of the
      leaf; along each axis, one entry serves a run of equally many neighbours
      (64 weights of an NF4 block share one float32). `scale` is 0 in padding.
    scheme: the quantization scheme.
    shape: shape of the leaf.
  """

  shared: scheme_lib.Shared
  scheme: scheme_lib.Scheme
  shape: tuple[int, ...]

  def encode(self, values: jax.Array) -> jax.Array:
    """Codes (uint8) of values, at the fixed scales."""
    return self._elementwise(self.scheme.encode_at, values)

  def snap(self, values: jax.Array) -> jax.Array:
    """Quantizes and decodes values (float32) at the fixed scales.

    NaN and infinity become NaN.
    """
    return jnp.where(
        jnp.isfinite(values), self.snap_finite(values), jnp.nan)

  def snap_finite(self, values: jax.Array) -> jax.Array:
    """`snap` for finite values; other values give an arbitrary code's value."""
    return self._elementwise(self.scheme.snap, values)

  def changes(self, values: jax.Array, origin: jax.Array) -> jax.Array:
    """Whether each value decodes differently from `origin`; bool."""
    return self.snap(values) != self.snap(origin)

  def sets_scale(self, origin: jax.Array) -> jax.Array:
    """Whether each weight of theta_0 sets a scale and must not move; bool.

    True in padding.
    """
    return self._elementwise(self.scheme.sets_scale, origin)

  def boundaries(self, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ends (float32) of the interval that decodes to theta_0's value."""
    def ends(values, shared):
      return self.scheme.boundaries(
          self.scheme.encode_at(values, shared), shared)

    return self._elementwise(ends, origin)

  def extent(self) -> tuple[jax.Array, jax.Array]:
    """Least and largest value (float32) that do not change the scale."""
    low, high = self.scheme.extent(self.shared)
    return (blockwise.spread(low, self.shape),
            blockwise.spread(high, self.shape))

  def spread(self) -> scheme_lib.Shared:
    """The block parameters, repeated for every weight of the leaf."""
    return jax.tree.map(
        lambda x: blockwise.spread(x, self.shape), self.shared)

  def _elementwise(self, fn, values):
    """Calls `fn(values, shared)` with runs as axes, where `shared` has size 1.

    Arithmetic on scales then has the same shapes as in block quantization. With
    scales repeated for every weight, XLA may round quotients differently.
    """
    runs, ones = blockwise.split_runs(self.shared.scale.shape, self.shape)

    def call(values, shared):
      shared = jax.tree.map(lambda x: x.reshape(ones), shared)
      result = fn(values.astype(jnp.float32).reshape(runs), shared)
      return jax.tree.map(lambda x: jnp.broadcast_to(
          x, runs).reshape(self.shape), result)

    return devices.elementwise(call, values, values, self.shared)


def is_leaf_grid(node: object) -> bool:
  """Predicate for jax.tree functions: a `LeafGrid` or an absent node."""
  return leaves.is_absent(node) or isinstance(node, LeafGrid)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=('leaves',),
    meta_fields=('scheme',))
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodeGrid:
  """The grids of a tree of weights.

  Attributes:
    leaves: a tree of `LeafGrid` in the structure of the weights; None for a
      leaf that stays unquantized.
    scheme: the quantization scheme.
  """

  leaves: PyTree
  scheme: scheme_lib.Scheme

  @property
  def scale(self) -> PyTree:
    """The value (float32) that sets the scale of each weight's block."""
    return self._map(lambda grid: grid.spread().scale)

  def map_fields(self, fn: Callable[[PyTree], PyTree]) -> CodeGrid:
    """Applies `fn` to trees of the weights' shapes, e.g. to gather slices.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from mansu_jax import quant, transforms
      >>> params = {'w': jnp.arange(256.0).reshape(64, 4)}
      >>> layout = {'w': quant.BlockLayout(memory='IO', out='O', inp='I')}
      >>> rows = jnp.array([3, 5])
      >>> gather = lambda tree: jax.tree.map(lambda x: x[rows], tree)
      >>> grid = quant.code_grid(params, 'nf4', layout).map_fields(gather)
      >>> transforms.hold_at_origin(grid).init(gather(params)).count.item()
      0

    Args:
      fn: takes a tree of arrays with one entry a weight, and returns the same
        for the slices; it fills padding, if any, with 0.

    Returns:
      The grid of the slices, with an entry for each weight. To gather one entry
      for each run, see `map_leaves`.
    """
    spread = self._map(lambda grid: grid.spread())
    parts = {name: self._field(spread, name)
             for name in scheme_lib.Shared._fields}
    parts = {name: fn(tree) for name, tree in parts.items()
             if jax.tree.leaves(tree)}
    make = lambda scale, *others: None if leaves.is_absent(scale) else LeafGrid(
        scheme_lib.Shared(**dict(zip(parts, (scale, *others)))), self.scheme,
        jnp.shape(scale))
    return dataclasses.replace(
        self, leaves=leaves.tree_map(make, *parts.values()))

  def _field(self, spread: PyTree, name: str) -> PyTree:
    """One field of a tree of `Shared`; `tail` for all leaves if any has it."""
    tree = self._map(lambda _, shared: getattr(shared, name), spread)
    if name != 'tail' or not jax.tree.leaves(tree):
      return tree
    return self._map(  # In the other leaves, no block is partial.
        lambda grid, tail: jnp.zeros(grid.shape, bool) if tail is None
        else tail, tree)

  def map_leaves(
      self, fn: Callable[[str, LeafGrid], LeafGrid | None]) -> CodeGrid:
    """Applies `fn(leaf name, grid)` to each leaf's grid."""
    call = lambda path, grid: (
        None if leaves.is_absent(grid) else fn(leaves.name_of(path), grid))
    return dataclasses.replace(self, leaves=jax.tree_util.tree_map_with_path(
        call, self.leaves, is_leaf=is_leaf_grid))

  def decode_nearest(self, values: PyTree) -> PyTree:
    """Quantizes and decodes a tree at the fixed scales; see `grid_view`."""
    return grid_view(self, values)

  def changes(self, values: PyTree, origin: PyTree) -> PyTree:
    """Whether each value decodes differently from theta_0; a bool tree."""
    return self._map(LeafGrid.changes, values, origin)

  def sets_scale(self, origin: PyTree) -> PyTree:
    """Whether each weight of theta_0 sets a scale; a bool tree."""
    return self._map(LeafGrid.sets_scale, origin)

  def boundaries(self, origin: PyTree) -> tuple[PyTree, PyTree]:
    """Ends of the interval that decodes to theta_0's values; float32 trees."""
    ends = self._map(LeafGrid.boundaries, origin)
    pick = lambda i: jax.tree.map(
        lambda pair: pair and pair[i], ends,
        is_leaf=lambda node: node is None or isinstance(node, tuple))
    return pick(0), pick(1)

  def _map(self, fn, *trees):
    call = lambda grid, *found: (
        None if leaves.is_absent(grid) else fn(grid, *found))
    return jax.tree.map(call, self.leaves, *trees, is_leaf=is_leaf_grid)


def grid_view(grid: CodeGrid, values: PyTree) -> PyTree:
  """Quantizes and decodes each value at the scales of theta_0.

  The result equals `fake_quantize` of the full weights if the weights that set
  scales have not moved and no other weight exceeds them in magnitude.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> params = {'w': jnp.array([[7.0, 2.2, -0.4]])}
    >>> grid = quant.code_grid(params, 'int4_g128', {'w': quant.TORCH})
    >>> print(quant.grid_view(grid, {'w': jnp.array([[1.0, 2.6, -0.9]])})['w'])
    [[ 1.  3. -1.]]

  Args:
    grid: the grid of theta_0, or slices of it.
    values: a tree of the grid's structure and shapes.

  Returns:
    A tree like `values` with the same dtypes. A leaf without a grid is returned
    unchanged. NaN and infinity become NaN.

  Raises:
    ValueError: the trees differ in structure or shape.
  """
  aligned = align_grid(grid, values)
  snap = lambda value, leaf_grid: (
      value if leaf_grid is None else leaf_grid.snap(value).astype(value.dtype))
  return leaves.tree_map(snap, values, aligned)


def align_grid(grid: CodeGrid, params: PyTree) -> PyTree:
  """The leaves of a grid in the structure of the params; see `leaves.align`.

  Raises:
    ValueError: the structures differ, or a grid and its param differ in shape.
  """
  label = f'The {grid.scheme.name} code grid'
  aligned = leaves.align(grid.leaves, params, label, is_leaf_grid)
  others = leaves.flatten(params)
  for name, leaf_grid in leaves.flatten(aligned, is_leaf_grid).items():
    if leaf_grid is not None and leaf_grid.shape != jnp.shape(others[name]):
      raise ValueError(
          f'{label} has shape {leaf_grid.shape} at {name!r}; wanted the'
          f" param's {jnp.shape(others[name])}. Gather the grid with the same"
          ' indices as the params.')
  return aligned
