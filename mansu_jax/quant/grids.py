"""The quantization grid under a set of weights, held fixed while they move.

A `CodeGrid` is made once from the full theta_0 and says, for every weight, the
scale of its block, its code and whether it sets that scale. As long as those
that do stay where they are, the grid tells exactly what the quantizer makes of
any other value, without cutting blocks again. So its leaves may be gathered
into circuit slices, beside the weights: a block of `down` spans 64 neurons,
and blocks of slices would be other blocks.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp

from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant import simulate

PyTree = leaves.PyTree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=('scale', 'code', 'frozen', 'tail'), meta_fields=('scheme',))
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodeGrid:
  """Scales, codes and frozen flags of a tree of weights, leaf by leaf.

  Attributes:
    scale: float32 absmax of the block of each weight; 0 in padding.
    code: uint8 code of each weight of theta_0.
    frozen: bool, the weight sets its block's scale and must not move; True in
      padding.
    tail: bool, the weight lies in a partial last block, which bitsandbytes
      scales by another formula; None where no leaf has one.
    scheme: the quantization scheme.

  Every tree has the structure of the weights, with None for a leaf that stays
  unquantized.
  """

  scale: PyTree
  code: PyTree
  frozen: PyTree
  tail: PyTree = None
  scheme: scheme_lib.Scheme

  def map_fields(self, fn: Callable[[PyTree, int | bool], PyTree]) -> CodeGrid:
    """Applies `fn(tree, padding value)` to each tree, e.g. to gather slices."""
    return dataclasses.replace(
        self, scale=fn(self.scale, 0), code=fn(self.code, 0),
        frozen=fn(self.frozen, True),
        tail=None if self.tail is None else fn(self.tail, False))

  def leaf_grids(self) -> PyTree:
    """The same as a tree of `LeafGrid`, None where unquantized."""
    tail = self.tail
    if tail is None:
      tail = leaves.tree_map(lambda _: None, self.scale)
    make = lambda scale, code, frozen, tail: (
        None if scale is None
        else LeafGrid(scale, code, frozen, tail, self.scheme))
    return leaves.tree_map(make, self.scale, self.code, self.frozen, tail)

  def decode_code(self) -> PyTree:
    """theta_0 after quantization, float32; None where unquantized."""
    decode = lambda grid: None if grid is None else grid.decode_code()
    return jax.tree.map(decode, self.leaf_grids(), is_leaf=is_leaf_grid)

  def decode_nearest(self, values: PyTree) -> PyTree:
    """Values after quantization with the scales held; see `grid_view`."""
    return grid_view(self, values)

  def changes(self, values: PyTree) -> PyTree:
    """Whether quantization tells each value from theta_0; bool trees."""
    changes = lambda grid, leaf: None if grid is None else grid.changes(leaf)
    return jax.tree.map(
        changes, self.leaf_grids(), values, is_leaf=is_leaf_grid)

  def boundaries(self) -> tuple[PyTree, PyTree]:
    """Lower and upper ends of each weight's interval, float32 trees."""
    grids = self.leaf_grids()
    ends = lambda i: jax.tree.map(
        lambda grid: None if grid is None else grid.boundaries()[i], grids,
        is_leaf=is_leaf_grid)
    return ends(0), ends(1)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=('scale', 'code', 'frozen', 'tail'), meta_fields=('scheme',))
@dataclasses.dataclass(frozen=True, eq=False)
class LeafGrid:
  """The grid of one leaf; arrays of the leaf's shape, as in `CodeGrid`."""

  scale: jax.Array
  code: jax.Array
  frozen: jax.Array
  tail: jax.Array | None
  scheme: scheme_lib.Scheme

  def decode_code(self) -> jax.Array:
    """theta_0 after quantization, float32."""
    return self.scheme.decode(self.code, self.scale)

  def snap(self, values: jax.Array) -> jax.Array:
    """Values after quantization with the scale held, float32."""
    return self.scheme.snap(
        values.astype(jnp.float32), self.scale, self.tail)

  def boundaries(self) -> tuple[jax.Array, jax.Array]:
    """Ends of the interval in which the decoded value stays, float32."""
    return self.scheme.boundaries(self.code, self.scale)

  def changes(self, values: jax.Array) -> jax.Array:
    """Whether quantization tells each value from theta_0; bool."""
    return self.snap(values) != self.decode_code()


def is_leaf_grid(node: object) -> bool:
  """For jax.tree functions: whether to stop at this node."""
  return node is None or isinstance(node, LeafGrid)


def code_grid(
    params: PyTree, scheme: str | scheme_lib.Scheme, layout: PyTree, *,
    storage_dtype: jax.typing.DTypeLike | None = None,
    take: Callable[[str, jax.Array], jax.Array] | None = None,
) -> CodeGrid:
  """Makes the grid of the full theta_0, or of a part of each leaf.

  Args:
    params: any pytree of floating-point weights, the whole of theta_0.
    scheme: a scheme or its name.
    layout: a tree like `params` of `BlockLayout`; None leaves a leaf alone.
    storage_dtype: what the weights will be stored in, if not their dtype:
      quantizers see the weights after this cast.
    take: `(leaf name, field of its grid) -> part`, e.g. to gather slices leaf
      by leaf, where the whole grid would be larger than the model.

  Returns:
    The grid, whose trees have the structure of `params`.

  Raises:
    ValueError: as `fake_quantize`.
  """
  scheme = schemes.get(scheme)
  simulate.check_quantizable(params, layout)

  def make(name, leaf, leaf_layout):
    if leaf is None or leaf_layout is None:
      return None
    codes = _leaf_codes(leaf, scheme, leaf_layout, storage_dtype)
    return codes if take is None else jax.tree.map(
        functools.partial(take, name), codes)

  codes = leaves.map_named(make, params, layout)
  field = lambda name: jax.tree.map(
      lambda c: None if c is None else getattr(c, name), codes,
      is_leaf=lambda c: c is None or isinstance(c, scheme_lib.Codes))
  return CodeGrid(
      scale=field('scale'), code=field('code'), frozen=field('frozen'),
      tail=_complete(field('tail'), field('frozen')), scheme=scheme)


def _complete(tail: PyTree, frozen: PyTree) -> PyTree:
  """None if no leaf has a partial block, else an array for every leaf."""
  if not jax.tree.leaves(tail):
    return None
  fill = lambda f, t: jnp.zeros(f.shape, bool) if t is None else t
  return jax.tree.map(fill, frozen, tail)


@functools.partial(
    jax.jit, static_argnames=('scheme', 'layout', 'storage_dtype'))
def _leaf_codes(leaf, scheme, layout, storage_dtype):
  stored = leaf if storage_dtype is None else leaves.cast(leaf, storage_dtype)
  codes = scheme.encode(layout_lib.to_rows(stored, layout))
  back = lambda rows: layout_lib.from_rows(rows, layout, leaf.shape)
  return jax.tree.map(back, codes)


def grid_view(grid: CodeGrid, values: PyTree) -> PyTree:
  """Snaps each value to its nearest code, with the scales of theta_0.

  Equals `fake_quantize` of the full weights wherever the frozen weights are
  where they were and no other weight is larger in magnitude.

  Args:
    grid: the grid of theta_0, or slices of it.
    values: a tree of the grid's structure and shapes.

  Returns:
    A tree like `values`, same dtypes; where the grid is None, as it was.

  Raises:
    ValueError: the trees differ in structure or shape.
  """
  leaves.check_shapes(grid.scale, values, 'The code grid')
  snap = lambda value, leaf_grid: (
      value if value is None or leaf_grid is None
      else leaf_grid.snap(value).astype(value.dtype))
  return leaves.tree_map(snap, values, grid.leaf_grids())
