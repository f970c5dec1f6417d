"""Makes the code grid of a tree of weights."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blocking
from mansu_jax.quant import devices
from mansu_jax.quant import grids
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant import simulate

PyTree = leaves.PyTree


def code_grid(
    params: PyTree, scheme: str | scheme_lib.Scheme, layout: PyTree, *,
    storage_dtype: jax.typing.DTypeLike | None = None) -> grids.CodeGrid:
  """Makes the grid of the full theta_0.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> params = {'w': jnp.array([[7.0, 2.2, -0.4]])}
    >>> grid = quant.code_grid(params, 'int4_g128', {'w': quant.TORCH})
    >>> moved = {'w': jnp.array([[7.0, 2.6, -0.3]])}
    >>> print(grid.changes(moved, params)['w'])
    [[False  True False]]

  Args:
    params: any pytree of floating-point weights, theta_0 in full.
    scheme: a scheme or its name.
    layout: a tree like `params` of `BlockLayout`; None leaves a leaf
      unchanged.
    storage_dtype: dtype in which the weights will be exported; None: their own
      dtype. Quantizers receive the weights after this cast.

  Returns:
    The grid, whose tree has the structure of `params`.

  Raises:
    ValueError: see `fake_quantize`; also a scheme whose scales depend on all
      weights, or a dtype too coarse to reach every code of the scheme.
  """
  scheme = schemes.get(scheme)
  if not scheme.holds_scale:
    raise ValueError(
        f'{scheme.name} fits its scales to all weights of a block, so no fixed'
        ' grid predicts its codes after an edit; wanted a scheme whose largest'
        ' weights set the scale, such as nf4 or q4_0. Measure'
        f' {scheme.name} with quant.fake_quantize.')
  layout = simulate.check_quantizable(params, layout, scheme)
  layouts = leaves.flatten(layout)
  quantized = [(name, leaf) for name, leaf in leaves.flatten(params).items()
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
    shared = leaf_shared(leaf, scheme, leaf_layout, storage_dtype)
    return grids.LeafGrid(shared, scheme, jnp.shape(leaf))

  return grids.CodeGrid(
      leaves=leaves.tree_map(make, params, layout), scheme=scheme)


def _check_dtype(scheme, dtype, name):
  """Raises ValueError if values of the dtype cannot reach every code."""
  if _skips_codes(scheme, jnp.dtype(dtype)):
    raise ValueError(
        f'{scheme.name} has {len(scheme.levels)} values in a block, but'
        f' {jnp.dtype(dtype).name}, in which {name!r} is stored, cannot'
        ' represent all of them, so an edit may not survive. Store the weights'
        ' in float16, bfloat16 or float32.')


@functools.cache
def _skips_codes(scheme, dtype) -> bool:
  """Whether values of the dtype miss a code of the scheme for some absmax."""
  mantissa_bits = jnp.finfo(dtype).nmant
  if mantissa_bits > 7:  # More precise than bfloat16, which reaches 255 codes.
    return False
  ends = (scheme.levels[1:] + scheme.levels[:-1]) / 2
  # In [1, 2).
  significands = 1 + np.arange(2**mantissa_bits) / 2**mantissa_bits
  values = np.outer(2.0**-np.arange(12), significands).ravel()
  values = np.concatenate([values, [0], -values])
  reached = lambda absmax: np.unique(np.searchsorted(
      ends, values[abs(values) <= absmax] / absmax))
  return any(len(reached(absmax)) <= len(ends) for absmax in significands)


@functools.partial(
    jax.jit, static_argnames=('scheme', 'layout', 'storage_dtype'))
def leaf_shared(
    leaf: jax.Array, scheme: scheme_lib.Scheme, layout: layout_lib.BlockLayout,
    storage_dtype: jax.typing.DTypeLike | None) -> scheme_lib.Shared:
  """Block parameters of one leaf; all arguments but the leaf are static.

  Each array has one entry for each run of `blocking.runs`.
  """
  runs = blocking.runs(leaf.shape, scheme, layout)

  def fit(leaf):
    stored = leaf if storage_dtype is None else leaves.cast(leaf, storage_dtype)
    return blocking.run_params(stored, scheme, layout)

  sharding = _runs_sharding(jax.typeof(leaf), runs)
  return devices.with_sharding(sharding, fit, leaf)


def _runs_sharding(leaf, runs) -> jax.sharding.NamedSharding:
  """The sharding of a leaf, without axes that do not divide its runs."""
  mesh = leaf.sharding.mesh
  parts = lambda axes: int(np.prod(
      [mesh.shape[a] for a in np.atleast_1d(axes)], dtype=int))
  spec = [
      axes if axes and not (n // run) % parts(axes) else None
      for axes, n, run in zip(leaf.sharding.spec, leaf.shape, runs)]
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
