"""Converts between per-layer torch tensors and stacked params, strictly.

All file formats use this module. Each format supplies its table of tensor names
and a function that reads one tensor; the config gives the expected shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import layout
from mansu_jax.quant import layout as quant_layout
from mansu_jax.runtime import sharding

MOST_ON_HOST = 2**28  # Most bytes of a leaf that the host assembles.
_SHOWN = 4  # Names listed in an error message before '...'.


@dataclasses.dataclass(frozen=True)
class Naming:
  """How the files of a family or format hold the leaves.

  Attributes:
    names: Leaf name -> tensor name, with `{}` for the layer. Leaves of one name
      share a tensor, in their order in `layout.LEAVES`.
    by_head: Whether such a tensor holds them head by head, and not one after
      the other.
    transposed: Whether matrices are stored as [in, out].
  """

  names: Mapping[str, str]
  by_head: bool = False
  transposed: bool = False


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a file, which holds one leaf of the params or several.

  Attributes:
    name: In the file.
    leaves: The leaves whose rows it holds.
    layer: None if the leaf is not stacked.
    heights: Number of rows of each leaf.
    width: Number of columns; None of a norm or bias, which has one axis.
    heads: Number of heads after each of which the leaves take turns, or 1.
    transposed: Whether the file has columns before rows.
  """

  name: str
  leaves: tuple[str, ...]
  layer: int | None
  heights: tuple[int, ...]
  width: int | None
  heads: int = 1
  transposed: bool = False

  @property
  def shape(self) -> tuple[int, ...]:
    """In the file: [out, in], [out], or [in, out]."""
    height = sum(self.heights)
    if self.width is None:
      return (height,)
    return (self.width, height) if self.transposed else (height, self.width)

  def split(self, values: np.ndarray) -> list[np.ndarray]:
    """The rows of each leaf, from the tensor as it is in the file."""
    rows = (values.T if self.transposed else values).reshape(
        self.heads, -1, *([] if self.width is None else [self.width]))
    ends = np.cumsum(self.heights)[:-1] // self.heads
    return [part.reshape(-1, *part.shape[2:])
            for part in np.split(rows, ends, axis=1)]

  def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
    """The inverse of `split`."""
    rows = np.concatenate([
        part.reshape(self.heads, -1, *part.shape[1:]) for part in parts], 1)
    rows = rows.reshape(-1, *rows.shape[2:])
    return np.ascontiguousarray(rows.T if self.transposed else rows)


def tensors(
    config: config_lib.ModelConfig, naming: Naming) -> Iterator[Tensor]:
  """Yields the tensors of a model file, leaf by leaf and layer by layer.

  Args:
    config: Config of the model.
    naming: How the file holds the leaves.
  """
  sharing: dict[str, dict[str, tuple[int, ...]]] = {}
  for leaf, shape in layout.shapes(config).items():
    sharing.setdefault(naming.names[leaf], {})[leaf] = shape
  for name, leaves in sharing.items():
    first = next(iter(leaves))
    rows = [_torch_shape(leaf, shape) for leaf, shape in leaves.items()]
    one = Tensor(
        name, tuple(leaves), None, tuple(row[0] for row in rows),
        rows[0][1] if len(rows[0]) > 1 else None,
        config.num_heads if naming.by_head and len(leaves) > 1 else 1,
        naming.transposed and first in layout.MATRICES)
    if not first.startswith('layers/'):
      yield one
      continue
    for layer in range(config.num_layers):
      yield dataclasses.replace(one, name=name.format(layer), layer=layer)


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape of one layer's leaf in torch: [out, in], or [out]."""
  if leaf in layout.MATRICES:
    return quant_layout.rows_shape(shape, layout.MATRICES[leaf])[1:]
  if leaf.startswith('layers/'):
    return (math.prod(shape[1:]),)  # A bias has one axis in torch.
  return shape


def layers(
    config: config_lib.ModelConfig, naming: Naming,
    params: types.Params,
    wanted: Callable[[Tensor], bool] = lambda tensor: True
) -> Iterator[tuple[Tensor, list[np.ndarray]]]:
  """Yields each tensor of a file with the weights of its leaves, on the host.

  Collective: every process must iterate over all tensors, because each layer is
  gathered. The host stores one layer at a time.

  Args:
    config: Config of the model.
    naming: How the file holds the leaves.
    params: Params of the model.
    wanted: Which tensors to yield; the others are not gathered.
  """
  flat = tree_paths.flatten(params)
  for tensor in filter(wanted, tensors(config, naming)):
    yield tensor, [
        sharding.to_host_uncached(flat[leaf]) if tensor.layer is None
        else sharding.to_host(take_layer(flat[leaf], tensor.layer))
        for leaf in tensor.leaves]


@jax.jit
def take_layer(leaf: types.Array, layer: int) -> types.Array:
  """One layer of a stacked leaf; one program serves all layers."""
  return leaf[layer]


def check(
    got: Mapping[str, tuple[int, ...]],
    config: config_lib.ModelConfig,
    naming: Naming,
    where: str,
) -> None:
  """Checks a file's tensor names and shapes against the config.

  Args:
    got: Tensor name -> torch shape, from the file's header.
    config: Config of the model.
    naming: How the file holds the leaves.
    where: File or directory, for the message.

  Raises:
    ValueError: a tensor is missing, unexpected or of another shape.
  """
  check_layers(config.num_layers, len(got), where)
  _check_widths(got, config, where)
  want = {t.name: t.shape for t in tensors(config, naming)}
  missing = [name for name in want if name not in got]
  extra = [name for name in got if name not in want]
  wrong = [f'{name} {tuple(got[name])} (wanted {shape})'
           for name, shape in want.items()
           if name in got and tuple(got[name]) != shape]
  problems = [
      f'{problem} {_shorten(listed)}' for problem, listed in (
          ('missing', missing), ('extra', extra), ('wrong shape:', wrong))
      if listed]
  if problems:
    raise ValueError(
        f'The tensors in {where} do not match its config:'
        f' {"; ".join(problems)}. Wanted exactly the {len(want)} tensors of a'
        f' {config.num_layers}-layer {config.family} model with'
        f' {"tied" if config.tie_embeddings else "untied"} embeddings. Use the'
        ' config and weights of one checkpoint.')


def check_layers(num_layers: int, num_tensors: int, where: str) -> None:
  """Raises ValueError if a damaged config claims more layers than tensors."""
  if num_layers > num_tensors:
    raise ValueError(
        f'{where} has {num_tensors} tensors, but its config has {num_layers}'
        ' layers; wanted several tensors per layer. Use the config and weights'
        ' of one checkpoint.')


def _check_widths(
    got: Mapping[str, tuple[int, ...]], config: config_lib.ModelConfig,
    where: str) -> None:
  """Raises ValueError if the config has widths beyond any tensor's shape."""
  longest = max((max(shape, default=1) for shape in got.values()), default=0)
  widths = {'d_model': config.d_model, 'd_ff': config.d_ff,
            'vocab_size': config.vocab_size,
            'num_heads * d_head': config.num_heads * config.d_head}
  wide = {name: width for name, width in widths.items() if width > longest}
  if wide:
    raise ValueError(
        f'The tensors in {where} do not match its config, which has {wide};'
        f' wanted at most {longest}, the longest axis of a tensor. Use the'
        ' config and weights of one checkpoint.')


def _shorten(items: list[str]) -> str:
  more = ', ...' if len(items) > _SHOWN else ''
  return f'{len(items)} ({", ".join(items[:_SHOWN])}{more})'


def assemble(
    config: config_lib.ModelConfig,
    naming: Naming,
    read: Callable[[Tensor], np.ndarray],
    dtype: Any,
) -> types.Params:
  """Reads all tensors and stacks them into params, one leaf at a time.

  Args:
    config: Config of the model.
    naming: How the file holds the leaves.
    read: Returns one tensor as it is in the file. Call `check` before.
    dtype: Dtype of the params.

  Returns:
    Params on the current mesh. The host stores at most the leaves of one tensor
    at a time, or one layer of a leaf of over `MOST_ON_HOST` bytes.

  Raises:
    ValueError: a weight is not finite, in the file or in `dtype`.
  """
  flat, stacks, shapes = {}, {}, layout.shapes(config)
  for tensor in tensors(config, naming):
    unstacked = tensor.layer is None
    values = read(tensor)
    _check_finite(
        values, tensor.name, 'not finite; wanted finite weights. The checkpoint'
        ' is damaged: download or train it again.')
    for leaf, part in zip(tensor.leaves, tensor.split(values)):
      shape = shapes[leaf]
      if unstacked or tensor.layer == 0:
        stacks[leaf] = _stack(shape, dtype, layout.AXES[leaf], unstacked)
      with np.errstate(over='ignore'):  # `_check_finite` reports overflow.
        layer = from_torch(
            part, leaf, shape if unstacked else shape[1:]).astype(
                dtype, copy=False)
      _check_finite(
          layer, tensor.name, f'too large for {layer.dtype.name}; wanted finite'
          ' weights. Give --export_dtype=float32 or bfloat16.')
      stacks[leaf].add(0 if unstacked else tensor.layer, layer)
      if unstacked or tensor.layer == config.num_layers - 1:
        flat[leaf] = stacks.pop(leaf).done()
  return tree_paths.unflatten(flat)


class _OnHost:
  """Assembles a leaf on the host."""

  def __init__(self, shape, dtype, axes, unstacked):
    self._buffer, self._axes = np.empty(shape, dtype), axes
    self._unstacked = unstacked

  def add(self, layer: int, weights: np.ndarray) -> None:
    target = self._buffer if self._unstacked else self._buffer[layer]
    target[...] = weights

  def done(self) -> types.Array:
    return sharding.shard(self._buffer, self._axes)


class _OnDevices:
  """Assembles a leaf on its devices, one layer at a time."""

  def __init__(self, shape, dtype, axes):
    self._leaf = sharding.zeros(shape, dtype, axes)
    self._axes = axes[1:]
    self._set = jax.jit(
        _set_layer, donate_argnums=0, out_shardings=self._leaf.sharding)

  def add(self, layer: int, weights: np.ndarray) -> None:
    self._leaf = self._set(
        self._leaf, sharding.shard(weights, self._axes), layer)

  def done(self) -> types.Array:
    return self._leaf


def _set_layer(
    leaf: types.Array, weights: types.Array, layer: types.Array
) -> types.Array:
  """The leaf with one layer replaced, in place if it is donated.

  As bits: on CPU XLA computes in float32 what it does with 16-bit floats.
  """
  bits = lambda x: jax.lax.bitcast_convert_type(x, f'u{x.dtype.itemsize}')
  found = jax.lax.dynamic_update_index_in_dim(
      bits(leaf), bits(weights), layer, 0)
  return jax.lax.bitcast_convert_type(found, leaf.dtype)


def _stack(shape, dtype, axes, unstacked):
  """Chooses where to assemble a leaf."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  if unstacked or size <= MOST_ON_HOST:
    return _OnHost(shape, dtype, axes, unstacked)
  return _OnDevices(shape, dtype, axes)


def _check_finite(weights: np.ndarray, name: str, problem: str) -> None:
  """Raises ValueError if weights are infinite or NaN."""
  with np.errstate(invalid='ignore'):  # Signaling NaN of 16-bit types.
    bad = weights.size - np.count_nonzero(np.isfinite(weights))
  if bad:
    raise ValueError(
        f'{bad} of {weights.size} weights of {name} are {problem}')


def from_torch(
    rows: np.ndarray,  # [out, in], or [D]
    leaf: str,
    shape: tuple[int, ...],
) -> np.ndarray:
  """One layer of a leaf in memory order, e.g. [D, N, H]; a view."""
  if leaf not in layout.MATRICES:
    return rows.reshape(shape)
  axes = _layer_axes(leaf)
  return rows.reshape([shape[a] for a in axes]).transpose(np.argsort(axes))


def to_torch(
    arrays: Sequence[np.ndarray],  # One layer of each leaf, in memory order.
    tensor: Tensor,
) -> np.ndarray:
  """Inverse of `from_torch`: the tensor as it is in the file."""
  columns = () if tensor.width is None else (tensor.width,)
  parts = []
  for leaf, array, height in zip(tensor.leaves, arrays, tensor.heights):
    if leaf in layout.MATRICES:
      array = array.transpose(_layer_axes(leaf))
    parts.append(array.reshape(height, *columns))
  return tensor.join(parts)


def _layer_axes(leaf: str) -> list[int]:
  """Axes of one layer of a stacked matrix, rows before columns."""
  return [axis - 1 for axis in layout.MATRICES[leaf].permutation[1:]]
