"""Checks weight by weight whether an edit survives quantization."""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import blocking
from mansu_jax.quant import devices
from mansu_jax.quant import layout as layout_lib
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant import simulate

PyTree = leaves.PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditCheck:
  """Counts of weights, and in `scales_changed` of blocks.

  Attributes:
    moved: number of weights whose bits differ from theta_0.
    changed_codes: number of weights whose code changed to one of another value.
    moved_unchanged: number of weights that moved but kept their code:
      quantization rounds their edit away.
    scales_changed: number of blocks whose scale differs. In such a block,
      weights that did not move may change their code.
    moved_unquantized: number of weights that moved in unquantized leaves.
    leaves: the counts of each quantized leaf, by name.
  """

  moved: int
  changed_codes: int
  moved_unchanged: int
  scales_changed: int
  moved_unquantized: int = 0
  leaves: Mapping[str, EditCheck] = dataclasses.field(default_factory=dict)

  @property
  def survives(self) -> bool:
    """Whether all moved weights changed their code and no scale changed."""
    return not (self.moved_unchanged or self.scales_changed) and (
        self.moved == self.changed_codes)


def check_edit(
    theta_0: PyTree, theta_t: PyTree, scheme: str | scheme_lib.Scheme,
    layout: PyTree, *, storage_dtype: jax.typing.DTypeLike | None = None
) -> EditCheck:
  """Quantizes both trees from scratch and counts the weights that changed.

  The check uses no grid and no optimizer state. To detect a wrong
  `BlockLayout` as well, check the exported weights, in torch's order and with
  `TORCH` for every matrix. A wrong layout gives other blocks, in which moved
  weights keep their codes and scales change.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> before = {'w': jnp.array([[1.0, 0.30, -0.52, 0.0]])}
    >>> after = {'w': jnp.array([[1.0, 0.31, -1.00, 0.0]])}
    >>> check = quant.check_edit(before, after, 'nf4', {'w': quant.TORCH})
    >>> check.moved, check.changed_codes, check.moved_unchanged
    (2, 1, 1)

  Args:
    theta_0: any pytree of weights, before the edit.
    theta_t: the weights after the edit, with the same structure and shapes. If
      a dtype differs, theta_0 is cast to it first, as the export does.
    scheme: a scheme or its name.
    layout: a tree like both of `BlockLayout`; None for a leaf that stays
      unquantized.
    storage_dtype: dtype in which the weights are stored; None: their own dtype.

  Raises:
    ValueError: see `fake_quantize`; also trees of different structure or
      shapes, or a call under `jax.jit`.
  """
  if not leaves.is_concrete((theta_0, theta_t)):
    raise ValueError(
        'check_edit needs concrete weights, but got abstract ones: call it'
        ' outside jax.jit.')
  scheme = schemes.get(scheme)
  before, after = leaves.flatten_pair(theta_0, theta_t, 'theta_t')
  for params in (theta_0, theta_t):
    aligned = simulate.check_quantizable(params, layout, scheme)
  found, unquantized = {}, 0
  for name, leaf_layout in leaves.flatten(aligned).items():
    if name not in before:
      continue
    pair = jnp.asarray(before[name]), jnp.asarray(after[name])
    if leaf_layout is None:
      unquantized += leaves.count_now(_count_moved, *pair)
      continue
    counts = devices.replicated(
        _compare, *pair, scheme, leaf_layout,
        storage_dtype and jnp.dtype(storage_dtype))
    found[name] = EditCheck(**{
        key: int(np.sum(value, dtype=np.int64))
        for key, value in jax.device_get(counts).items()})
  total = {key: sum(getattr(one, key) for one in found.values())
           for key in _COUNTS}
  return EditCheck(**total, moved_unquantized=unquantized, leaves=found)


_COUNTS = ('moved', 'changed_codes', 'moved_unchanged', 'scales_changed')


@functools.partial(
    jax.jit, static_argnames=('scheme', 'layout', 'storage_dtype'))
def _compare(before, after, scheme, layout, storage_dtype):
  """Counts of one leaf; counts of weights are by row, to fit in int32."""
  before = leaves.cast(before, after.dtype)
  as_stored = lambda x: x if storage_dtype is None else (
      leaves.cast(x, storage_dtype))
  levels, scales = zip(*(
      _levels_and_scales(as_stored(x), scheme, layout)
      for x in (before, after)))
  rows = lambda x: layout_lib.to_rows(x, layout)
  moved = rows(_bits(before) != _bits(after))
  changed = rows(levels[0] != levels[1])
  differ = [_bits(old) != _bits(new) for old, new in zip(*scales)]
  count = lambda x: jnp.sum(x, axis=-1, dtype=jnp.int32)
  return {
      'moved': count(moved), 'changed_codes': count(changed),
      'moved_unchanged': count(moved & ~changed),
      'scales_changed': count(functools.reduce(jnp.logical_or, differ))}


def _levels_and_scales(leaf, scheme, layout):
  """Indices of the codes in order of value, and a list of block parameters."""
  codes = blocking.encode(leaf, scheme, layout)
  *_, columns = layout_lib.rows_shape(leaf.shape, layout)
  shared = blocking.block_params(leaf, scheme, layout)._replace(tail=None)
  level = scheme.for_columns(columns).level(codes.code)
  return level, jax.tree.leaves(shared)


@jax.jit
def _count_moved(before, after):
  before = before.astype(after.dtype)
  return jnp.sum(_bits(before) != _bits(after))


def _bits(x):
  """float32 bits of a floating array; float32 represents all its values."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
