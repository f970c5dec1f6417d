"""Maps a weight leaf in memory to the matrix that torch would store.

Block quantizers cut the flattened *torch* [out, in] matrix into blocks; our
weights are input-first and stacked over layers. A `BlockLayout` describes the
conversion in axis letters. Models supply layouts as data, so that this package
needs no model.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockLayout:
  """Axis letters of one leaf.

  Attributes:
    memory: axes of the leaf in memory, one letter each.
    out: letters of the axes that torch flattens into rows, in torch's order.
    inp: letters of the axes that torch flattens into columns, in torch's order.

  The remaining letters are batch axes: each index is a matrix of its own. For
  example, `BlockLayout(memory='LDNH', out='NH', inp='D')` is a stack of L torch
  weights [N * H, D].

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> layout = quant.BlockLayout(memory='LDNH', out='NH', inp='D')
    >>> quant.to_rows(jnp.zeros((2, 64, 4, 8)), layout).shape
    (2, 32, 64)

  The caller chooses the letters. Layouts of other libraries, as memory, out,
  inp:

    torch, equinox Linear [out, in]           'OI',   'O',  'I'
    flax Linear, Dense kernel [in, out]       'IO',   'O',  'I'
    a stack of these over L layers            'LIO',  'O',  'I'
    flax attention query, key, value          'DNH',  'NH', 'D'
    flax attention out                        'NHD',  'D',  'NH'
    torch, equinox Conv2d weight              'OIHW', 'O',  'IHW'
    flax Conv kernel                          'HWIO', 'O',  'IHW'

  No check finds a wrong layout of the right shape: compare `to_rows` of the
  leaf with torch's matrix, or run `check_edit` on the exported edit.

  Raises:
    ValueError: a repeated letter, or a row or column letter not in `memory`.
  """

  memory: str
  out: str
  inp: str

  def __post_init__(self):
    for letters in (self.memory, self.out + self.inp):
      if len(set(letters)) != len(letters):
        raise ValueError(
            f'{self} repeats an axis in {letters!r}: give every axis its own'
            ' letter, as a row axis, a column axis or a batch axis.')
    if not self.inp:
      raise ValueError(f'{self} has no column axis: name one in `inp`.')
    unknown = sorted(set(self.out + self.inp) - set(self.memory))
    if unknown:
      raise ValueError(
          f'{self} names axes {unknown} that are not in memory='
          f'{self.memory!r}: correct `out` and `inp`.')

  @property
  def batch(self) -> str:
    """The letters of the batch axes, in memory order."""
    return ''.join(a for a in self.memory if a not in self.out + self.inp)

  @property
  def permutation(self) -> tuple[int, ...]:
    """Axes of the leaf in the order batch, rows, columns."""
    return tuple(map(self.memory.index, self.batch + self.out + self.inp))

  def unbatched(self) -> BlockLayout:
    """The layout of one matrix of the stack."""
    memory = ''.join(a for a in self.memory if a not in self.batch)
    return dataclasses.replace(self, memory=memory)

  @property
  def is_input_first(self) -> bool:
    """Whether columns precede rows in memory, each in torch's order."""
    return self.memory == self.batch + self.inp + self.out


def rows_shape(shape: tuple[int, ...], layout: BlockLayout) -> tuple[int, ...]:
  """Shape of `to_rows` for a leaf of shape `shape`."""
  if len(shape) != len(layout.memory):
    raise ValueError(
        f'A leaf of shape {tuple(shape)} does not fit {layout}; wanted'
        f' {len(layout.memory)} axes, one for each letter of {layout.memory!r}.'
        ' Pass the full weight, not a slice, with its layout.')
  sizes = dict(zip(layout.memory, shape))
  size = lambda letters: int(np.prod([sizes[a] for a in letters], dtype=int))
  return (
      *(sizes[a] for a in layout.batch), size(layout.out), size(layout.inp))


def to_rows(leaf: jax.Array, layout: BlockLayout) -> jax.Array:
  """Transposes a leaf to torch order.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> layout = quant.BlockLayout(memory='IO', out='O', inp='I')
    >>> print(quant.to_rows(jnp.array([[1, 2, 3], [4, 5, 6]]), layout))
    [[1 4]
     [2 5]
     [3 6]]

  Args:
    leaf: weights in memory order, e.g. [L, D, N, H].
    layout: axis letters of the leaf.

  Returns:
    [batch..., out, in], e.g. [L, N * H, D].

  Raises:
    ValueError: the leaf has another number of axes than the layout.
  """
  shape = rows_shape(leaf.shape, layout)
  return jnp.transpose(leaf, layout.permutation).reshape(shape)


def from_rows(
    rows: jax.Array, layout: BlockLayout, shape: tuple[int, ...]
) -> jax.Array:
  """Transposes rows in torch order back to memory order.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> layout = quant.BlockLayout(memory='IO', out='O', inp='I')
    >>> rows = jnp.array([[1, 4], [2, 5], [3, 6]])
    >>> print(quant.from_rows(rows, layout, (2, 3)))
    [[1 2 3]
     [4 5 6]]

  Args:
    rows: [batch..., out, in].
    layout: axis letters of the leaf.
    shape: shape of the leaf in memory order.

  Raises:
    ValueError: the rows do not have the shape of `to_rows`.
  """
  if rows.shape != rows_shape(shape, layout):
    raise ValueError(
        f'Rows of shape {rows.shape} do not fit a leaf of shape {tuple(shape)}'
        f' in {layout}; wanted {rows_shape(shape, layout)}.')
  permuted = rows.reshape([shape[axis] for axis in layout.permutation])
  return jnp.transpose(permuted, np.argsort(layout.permutation))


# A matrix in torch's order, [out, in].
TORCH = BlockLayout(memory='OI', out='O', inp='I')
