"""The quantization grid under a set of weights, held fixed while they move.

A `CodeGrid` is made once from the full theta_0 and holds the scales of its
blocks. As long as the weights that set a scale stay where they are, and no
other weight leaves its block's range, the grid tells exactly how the quantizer
decodes any other values, without cutting blocks again. So it may be gathered
into circuit slices beside the weights: a block of `down` spans 64 neurons, and
blocks of slices would be other blocks.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blocking
from mansu_jax.quant import blockwise
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant import simulate

PyTree = leaves.PyTree


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=('shared',),
    meta_fields=('scheme', 'shape'))
@dataclasses.dataclass(frozen=True, eq=False)
class LeafGrid:
  """The grid of one leaf.

  Attributes:
    shared: what the block of each weight shares. Arrays have the axes of the
      leaf; along each, an entry stands for a run of equally many neighbours
      (64 weights of an NF4 block share one float32). `scale` is 0 in padding.
    scheme: the quantization scheme.
    shape: of the leaf.
  """

  shared: scheme_lib.Shared
  scheme: scheme_lib.Scheme
  shape: tuple[int, ...]

  def encode(self, values: jax.Array) -> jax.Array:
    """Codes (uint8) of values, with the scales held."""
    return self._elementwise(self.scheme.encode_at, values)

  def snap(self, values: jax.Array) -> jax.Array:
    """Values after quantization with the scales held, float32.

    NaN and infinity become NaN.
    """
    return jnp.where(
        jnp.isfinite(values), self.snap_finite(values), jnp.nan)

  def snap_finite(self, values: jax.Array) -> jax.Array:
    """As `snap`, of finite values; of others, some code's value."""
    return self._elementwise(self.scheme.snap, values)

  def changes(self, values: jax.Array, origin: jax.Array) -> jax.Array:
    """Whether each value decodes differently from `origin`; bool."""
    return self.snap(values) != self.snap(origin)

  def sets_scale(self, origin: jax.Array) -> jax.Array:
    """Which weights of theta_0 set a scale, and must not move; bool.

    True in padding.
    """
    return self._elementwise(self.scheme.sets_scale, origin)

  def boundaries(self, origin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ends of the interval in which theta_0's decoded value stays, float32."""
    def ends(values, shared):
      return self.scheme.boundaries(
          self.scheme.encode_at(values, shared), shared)

    return self._elementwise(ends, origin)

  def extent(self) -> tuple[jax.Array, jax.Array]:
    """Least and largest value that leave each weight's scale, float32."""
    low, high = self.scheme.extent(self.shared)
    return (blockwise.spread(low, self.shape),
            blockwise.spread(high, self.shape))

  def spread(self) -> scheme_lib.Shared:
    """What is shared, for every weight of the leaf."""
    return jax.tree.map(
        lambda x: blockwise.spread(x, self.shape), self.shared)

  def _elementwise(self, fn, values):
    """`fn(values, shared)`, each run an axis along which `shared` has size 1.

    Arithmetic on scales then has the shapes that it has where blocks are cut.
    On scales that are spread out, XLA may round quotients otherwise.
    """
    runs, ones = blockwise.split_runs(self.shared.scale.shape, self.shape)

    def call(values, shared):
      shared = jax.tree.map(lambda x: x.reshape(ones), shared)
      made = fn(values.astype(jnp.float32).reshape(runs), shared)
      return jax.tree.map(lambda x: jnp.broadcast_to(
          x, runs).reshape(self.shape), made)

    return leaves.elementwise(call, values, values, self.shared)


def is_leaf_grid(node: object) -> bool:
  """For jax.tree functions: whether to stop at this node."""
  return leaves.is_absent(node) or isinstance(node, LeafGrid)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=('leaves',),
    meta_fields=('scheme',))
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class CodeGrid:
  """The grids of a tree of weights.

  Attributes:
    leaves: a tree of the structure of the weights, of `LeafGrid`; None for a
      leaf that stays unquantized.
    scheme: the quantization scheme.
  """

  leaves: PyTree
  scheme: scheme_lib.Scheme

  @property
  def scale(self) -> PyTree:
    """What sets the scale of each weight's block, float32, for every weight."""
    return self._map(lambda grid: grid.spread().scale)

  def map_fields(self, fn: Callable[[PyTree], PyTree]) -> CodeGrid:
    """Applies `fn` to trees of the weights' shapes, e.g. to gather slices.

    Args:
      fn: takes a tree of arrays, one for each weight, and gives the same of
        slices; padding, if any, is 0.

    Returns:
      The grid of the slices, with an entry for each weight. To gather with one
      for each run, see `map_leaves`.
    """
    whole = self._map(lambda grid: grid.spread())
    parts = {name: self._part(whole, name)
             for name in scheme_lib.Shared._fields}
    parts = {name: fn(tree) for name, tree in parts.items()
             if jax.tree.leaves(tree)}
    make = lambda scale, *others: None if leaves.is_absent(scale) else LeafGrid(
        scheme_lib.Shared(**dict(zip(parts, (scale, *others)))), self.scheme,
        jnp.shape(scale))
    return dataclasses.replace(
        self, leaves=leaves.tree_map(make, *parts.values()))

  def _part(self, whole: PyTree, name: str) -> PyTree:
    """One field of a tree of `Shared`, for every leaf if any has it."""
    tree = self._map(lambda _, shared: getattr(shared, name), whole)
    if name != 'tail' or not jax.tree.leaves(tree):
      return tree
    return self._map(  # No block of the others is partial.
        lambda grid, tail: jnp.zeros(grid.shape, bool) if tail is None
        else tail, tree)

  def map_leaves(
      self, fn: Callable[[str, LeafGrid], LeafGrid | None]) -> CodeGrid:
    """Applies `fn(leaf name, grid)` to each leaf's grid."""
    paths, tree = jax.tree_util.tree_flatten_with_path(
        self.leaves, is_leaf=is_leaf_grid)
    made = [
        None if leaves.is_absent(grid) else fn(leaves.name_of(path), grid)
        for path, grid in paths]
    return dataclasses.replace(self, leaves=jax.tree.unflatten(tree, made))

  def decode_nearest(self, values: PyTree) -> PyTree:
    """Values after quantization with the scales held; see `grid_view`."""
    return grid_view(self, values)

  def changes(self, values: PyTree, origin: PyTree) -> PyTree:
    """Whether each value decodes differently from theta_0; bool trees."""
    return self._map(LeafGrid.changes, values, origin)

  def sets_scale(self, origin: PyTree) -> PyTree:
    """Which weights of theta_0 set a scale, and must not move; bool trees."""
    return self._map(LeafGrid.sets_scale, origin)

  def boundaries(self, origin: PyTree) -> tuple[PyTree, PyTree]:
    """Ends of the interval of each weight of theta_0, float32 trees."""
    ends = self._map(LeafGrid.boundaries, origin)
    pick = lambda i: jax.tree.map(
        lambda pair: pair and pair[i], ends,
        is_leaf=lambda node: node is None or isinstance(node, tuple))
    return pick(0), pick(1)

  def _map(self, fn, *trees):
    call = lambda grid, *found: (
        None if leaves.is_absent(grid) else fn(grid, *found))
    return jax.tree.map(call, self.leaves, *trees, is_leaf=is_leaf_grid)


def code_grid(
    params: PyTree, scheme: str | scheme_lib.Scheme, layout: PyTree, *,
    storage_dtype: jax.typing.DTypeLike | None = None) -> CodeGrid:
  """Makes the grid of the full theta_0.

  Args:
    params: any pytree of floating-point weights, the whole of theta_0.
    scheme: a scheme or its name.
    layout: a tree like `params` of `BlockLayout`; None leaves a leaf alone.
    storage_dtype: what the weights will be stored in, if not their dtype:
      quantizers see the weights after this cast.

  Returns:
    The grid, whose tree has the structure of `params`.

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
  layout = simulate.check_quantizable(params, layout, scheme)
  layouts = leaves.named(layout)
  quantized = [(name, leaf) for name, leaf in leaves.named(params).items()
               if layouts[name] is not None]
  for name, leaf in quantized:
    _check_dtype(scheme, storage_dtype or leaf.dtype, name)
  weights = [leaf for _, leaf in quantized]
  if leaves.is_concrete(weights) and not any(
      leaves.count_now(simulate.any_extreme, leaf) for leaf in weights):
    scheme = scheme.ordinary()

  def make(leaf, leaf_layout):
    if leaf_layout is None:
      return None
    return LeafGrid(
        leaf_shared(leaf, scheme, leaf_layout, storage_dtype), scheme,
        jnp.shape(leaf))

  return CodeGrid(
      leaves=leaves.tree_map(make, params, layout), scheme=scheme)


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
def leaf_shared(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout,
    storage_dtype: jax.typing.DTypeLike | None) -> scheme_lib.Shared:
  """The program of one leaf's grid; all but the leaf are static."""
  runs = blocking.runs(leaf.shape, scheme, layout)

  def share(leaf):
    stored = leaf if storage_dtype is None else leaves.cast(leaf, storage_dtype)
    return blocking.share(stored, scheme, layout)

  return leaves.sharded_as(_thinned(jax.typeof(leaf), runs), share, leaf)


def _thinned(leaf, runs) -> jax.sharding.NamedSharding:
  """The sharding of a leaf, whole along axes where it does not divide runs."""
  mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
  parts = lambda axes: int(np.prod(
      [mesh.shape[a] for a in np.atleast_1d(axes)], dtype=int))
  kept = [
      axes if axes and not (n // run) % parts(axes) else None
      for axes, n, run in zip(spec, leaf.shape, runs)]
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*kept))


def grid_view(grid: CodeGrid, values: PyTree) -> PyTree:
  """Snaps each value to its nearest code, with the scales of theta_0.

  Equals `fake_quantize` of the full weights wherever the weights that set
  scales are where they were and no other weight is larger in magnitude.

  Args:
    grid: the grid of theta_0, or slices of it.
    values: a tree of the grid's structure and shapes.

  Returns:
    A tree like `values`, same dtypes; a leaf without a grid is returned as it
    is. NaN and infinity become NaN.

  Raises:
    ValueError: the trees differ in structure or shape.
  """
  aligned = align_grid(grid, values)
  snap = lambda value, leaf_grid: (
      value if leaf_grid is None else leaf_grid.snap(value).astype(value.dtype))
  return leaves.tree_map(snap, values, aligned)


def align_grid(grid: CodeGrid, params: PyTree) -> PyTree:
  """The grid's leaves in the structure of the params, as `leaves.align`.

  Raises:
    ValueError: also where a grid is of another shape than its param.
  """
  what = f'The {grid.scheme.name} code grid'
  aligned = leaves.align(grid.leaves, params, what, is_leaf_grid)
  others = leaves.named(params)
  for name, leaf_grid in leaves.named(aligned, is_leaf_grid).items():
    if leaf_grid is not None and leaf_grid.shape != jnp.shape(others[name]):
      raise ValueError(
          f'{what} has shape {leaf_grid.shape} at {name!r}; wanted the'
          f" param's {jnp.shape(others[name])}. Gather the grid as the params"
          ' were.')
  return aligned
