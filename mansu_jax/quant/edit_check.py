"""Whether an edit survives quantization, weight by weight, from the files."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EditCheck:
  """Counts of weights, and of blocks in `scales_changed`.

  Attributes:
    moved: weights whose bits differ from theta_0's.
    changed_codes: weights whose decoded value differs in code, not merely by
      the scale of their block.
    moved_unchanged: weights that moved and kept their code: rounded away.
    scales_changed: blocks whose scale differs, so that codes of weights that
      did not move may differ too.
    moved_unquantized: weights that moved in leaves that stay unquantized.
    leaves: the same by leaf name, of quantized leaves.
  """

  moved: int
  changed_codes: int
  moved_unchanged: int
  scales_changed: int
  moved_unquantized: int = 0
  leaves: Mapping[str, EditCheck] = dataclasses.field(default_factory=dict)

  @property
  def survives(self) -> bool:
    """Whether each weight is as it was or has another code of its old scale."""
    return not (self.moved_unchanged or self.scales_changed) and (
        self.moved == self.changed_codes)


def check_edit(
    theta_0: PyTree, theta_t: PyTree, scheme: str | scheme_lib.Scheme,
    layout: PyTree, *, storage_dtype: jax.typing.DTypeLike | None = None
) -> EditCheck:
  """Quantizes both anew and counts what quantization keeps of the edit.

  Independent of the transformations: it knows no grid and no state. To catch a
  wrong `BlockLayout` as well, check what is exported, in torch's order and with
  `TORCH` for every matrix: blocks of another layout are other blocks, so that
  moved weights keep their codes there and scales change.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> before = {'w': jnp.array([[1.0, 0.30, -0.52, 0.0]])}
    >>> after = {'w': jnp.array([[1.0, 0.31, -1.00, 0.0]])}
    >>> check = quant.check_edit(before, after, 'nf4', {'w': quant.TORCH})
    >>> check.moved, check.changed_codes, check.moved_unchanged
    (2, 1, 1)

  Args:
    theta_0: any pytree of weights, before.
    theta_t: after; same structure and shapes. Where its dtype is another,
      theta_0 is cast to it first, as an export casts a base that it leaves
      alone.
    scheme: a scheme or its name.
    layout: a tree like both of `BlockLayout`; None for a leaf that stays
      unquantized.
    storage_dtype: what the weights are stored in, if not their dtype.

  Raises:
    ValueError: as `fake_quantize`; trees of different structure or shapes; or
      it is called under `jax.jit`.
  """
  if not leaves.is_concrete((theta_0, theta_t)):
    raise ValueError(
        'check_edit counts weights and needs their values, but got abstract'
        ' ones: call it outside jax.jit.')
  scheme = schemes.get(scheme)
  before, after = leaves.pairs(theta_0, theta_t, 'theta_t')
  for params in (theta_0, theta_t):
    aligned = simulate.check_quantizable(params, layout, scheme)
  found, unquantized = {}, 0
  for name, leaf_layout in leaves.named(aligned).items():
    if name not in before:
      continue
    pair = jnp.asarray(before[name]), jnp.asarray(after[name])
    if leaf_layout is None:
      unquantized += leaves.count_now(_count_moved, *pair)
      continue
    counts = leaves.whole(
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
  """Counts of one leaf, by row where they may be large."""
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
  """Places of the codes in order of value, and the blocks' scales in a list."""
  codes = blocking.encode(leaf, scheme, layout)
  *_, columns = layout_lib.rows_shape(leaf.shape, layout)
  shared = blocking.scales(leaf, scheme, layout)._replace(tail=None)
  level = scheme.for_columns(columns).level(codes.code)
  return level, jax.tree.leaves(shared)


@jax.jit
def _count_moved(before, after):
  before = before.astype(after.dtype)
  return jnp.sum(_bits(before) != _bits(after))


def _bits(x):
  """Bits of a floating array; all its types are exact in float32."""
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return x
  return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
