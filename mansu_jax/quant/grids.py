"""The quantization grid under a set of weights, held fixed while they move.

A `CodeGrid` is made once from the full theta_0 and says, for every weight, what
its block shares, its code and whether it sets a scale. As long as those
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
import numpy as np

from mansu_jax.quant import blocking
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant import simulate

PyTree = leaves.PyTree


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=('code', 'frozen', 'shared'), meta_fields=('scheme',))
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodeGrid:
  """Codes, frozen flags and block scales of a tree of weights, leaf by leaf.

  Attributes:
    code: uint8 code of each weight of theta_0.
    frozen: bool, the weight sets its block's scale and must not move; True in
      padding.
    shared: what the block of each weight shares; every part is a tree, or None
      where no leaf has it. Its `scale` is 0 in padding.
    scheme: the quantization scheme.

  Every tree has the structure of the weights, with None for a leaf that stays
  unquantized.
  """

  code: PyTree
  frozen: PyTree
  shared: scheme_lib.Shared
  scheme: scheme_lib.Scheme

  @property
  def scale(self) -> PyTree:
    """What sets the scale of each weight's block, float32."""
    return self.shared.scale

  def fields(self) -> dict[str, PyTree]:
    """The trees by name, without those that no leaf has."""
    shared = {k: v for k, v in self.shared._asdict().items() if v is not None}
    return {'code': self.code, 'frozen': self.frozen} | shared

  def map_fields(self, fn: Callable[[PyTree, int | bool], PyTree]) -> CodeGrid:
    """Applies `fn(tree, padding value)` to each tree, e.g. to gather slices."""
    padding = {'frozen': True, 'tail': False}
    made = {name: fn(tree, padding.get(name, 0))
            for name, tree in self.fields().items()}
    return CodeGrid(
        code=made.pop('code'), frozen=made.pop('frozen'),
        shared=scheme_lib.Shared(**made), scheme=self.scheme)

  def leaf_grids(self) -> PyTree:
    """The same as a tree of `LeafGrid`, None where unquantized."""
    parts = [name for name in self.fields() if name in self.shared._fields]

    def make(code, frozen, *shared):
      if code is None:
        return None
      return LeafGrid(
          code, frozen, scheme_lib.Shared(**dict(zip(parts, shared))),
          self.scheme)

    return leaves.tree_map(
        make, self.code, self.frozen,
        *(getattr(self.shared, name) for name in parts))

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
    data_fields=('code', 'frozen', 'shared'), meta_fields=('scheme',))
@dataclasses.dataclass(frozen=True, eq=False)
class LeafGrid:
  """The grid of one leaf; arrays of the leaf's shape, as in `CodeGrid`."""

  code: jax.Array
  frozen: jax.Array
  shared: scheme_lib.Shared
  scheme: scheme_lib.Scheme

  def decode_code(self) -> jax.Array:
    """theta_0 after quantization, float32."""
    return self.scheme.decode(self.code, self.shared)

  def snap(self, values: jax.Array) -> jax.Array:
    """Values after quantization with the scale held, float32."""
    return self.scheme.snap(values.astype(jnp.float32), self.shared)

  def boundaries(self) -> tuple[jax.Array, jax.Array]:
    """Ends of the interval in which the decoded value stays, float32."""
    return self.scheme.boundaries(self.code, self.shared)

  def extent(self) -> tuple[jax.Array, jax.Array]:
    """Least and largest value that leave the block's scale, float32."""
    return self.scheme.extent(self.shared)

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
    ValueError: as `fake_quantize`; a scheme whose scales no frozen weights
      hold; or a dtype too coarse to reach each of its codes.
  """
  scheme = schemes.get(scheme)
  if not scheme.holds_scale:
    raise ValueError(
        f'{scheme.name} fits its scales to all weights of a block, so that no'
        ' fixed grid tells what it makes of an edit; wanted a scheme of a'
        ' scale that frozen weights hold, such as nf4 or q4_0. Measure'
        f' {scheme.name} with quant.fake_quantize.')
  simulate.check_quantizable(params, layout, scheme)
  for name, leaf in leaves.named(params).items():
    if leaf is not None and leaves.named(layout)[name] is not None:
      _check_dtype(scheme, storage_dtype or leaf.dtype, name)

  def make(name, leaf, leaf_layout):
    if leaf is None or leaf_layout is None:
      return None
    codes = leaf_codes(leaf, scheme, leaf_layout, storage_dtype)
    return codes if take is None else jax.tree.map(
        functools.partial(take, name), codes)

  codes = leaves.map_named(make, params, layout)
  field = lambda get: jax.tree.map(
      lambda c: None if c is None else get(c), codes,
      is_leaf=lambda c: c is None or isinstance(c, scheme_lib.Codes))
  frozen = field(lambda c: c.frozen)
  parts = {name: _complete(field(lambda c: getattr(c.shared, name)), frozen)
           for name in scheme_lib.Shared._fields[1:]}
  return CodeGrid(
      code=field(lambda c: c.code), frozen=frozen, shared=scheme_lib.Shared(
          field(lambda c: c.shared.scale), **parts), scheme=scheme)


def _complete(part: PyTree, frozen: PyTree) -> PyTree:
  """None if no leaf has the part, else an array for every leaf.

  Only `tail` is missing in some leaves: where no block is partial.
  """
  if not jax.tree.leaves(part):
    return None
  fill = lambda f, p: jnp.zeros(f.shape, bool) if p is None else p
  return jax.tree.map(fill, frozen, part)


def _check_dtype(scheme, dtype, name):
  """Raises ValueError where values of the dtype skip codes of the scheme."""
  if _skips_codes(scheme, jnp.dtype(dtype)):
    raise ValueError(
        f'{scheme.name} tells {len(scheme.levels)} values in a block, but'
        f' {jnp.dtype(dtype).name}, in which {name!r} is stored, does not reach'
        ' all of them; no edit could be promised to survive. Store the'
        ' weights in float16, bfloat16 or float32.')


@functools.cache
def _skips_codes(scheme, dtype) -> bool:
  """Whether some absmax of the dtype leaves a code that no value of it gets."""
  mantissa_bits = jnp.finfo(dtype).nmant
  if mantissa_bits > 7:  # As fine as bfloat16 at least: 255 codes are reached.
    return False
  ends = (scheme.levels[1:] + scheme.levels[:-1]) / 2
  once = 1 + np.arange(2**mantissa_bits) / 2**mantissa_bits  # In [1, 2).
  values = np.outer(2.0**-np.arange(12), once).ravel()
  values = np.concatenate([values, [0], -values])
  reached = lambda absmax: np.unique(np.searchsorted(
      ends, values[abs(values) <= absmax] / absmax))
  return any(len(reached(absmax)) <= len(ends) for absmax in once)


@functools.partial(
    jax.jit, static_argnames=('scheme', 'layout', 'storage_dtype'))
def leaf_codes(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout,
    storage_dtype: jax.typing.DTypeLike | None) -> scheme_lib.Codes:
  """The program of one leaf's grid; all but the leaf are static."""
  stored = leaf if storage_dtype is None else leaves.cast(leaf, storage_dtype)
  return blocking.encode(stored, scheme, layout)


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
