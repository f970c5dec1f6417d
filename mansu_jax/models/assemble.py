"""From per-layer torch tensors to stacked params, strict both ways.

Shared by the file formats: each brings its table of tensor names and a
function that reads one tensor; the expected shapes follow from the config.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
from typing import Any

import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.quant import layout as quant_layout
from mansu_jax.runtime import sharding

MOST_ON_HOST = 2**31  # Bytes of a leaf that is put together there.
_SHOWN = 4  # Names listed in an error message before '...'.


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a file: its place in the params and its torch shape."""

  name: str
  leaf: str
  layer: int | None  # None: the leaf is not stacked.
  shape: tuple[int, ...]  # [out, in], or [D] of a norm.


def tensors(
    config: config_lib.ModelConfig, names: Mapping[str, str]
) -> Iterator[Tensor]:
  """Yields the tensors a file must hold, leaf by leaf, layer by layer.

  Args:
    config: the model.
    names: leaf name -> tensor name, with `{}` for the layer.
  """
  for leaf, array in tree_paths.flatten(decoder.abstract(config)).items():
    if not leaf.startswith('layers/'):
      yield Tensor(names[leaf], leaf, None, array.shape)
      continue
    shape = array.shape[1:]
    if leaf in layout.MATRICES:
      rows = quant_layout.rows_shape(array.shape, layout.MATRICES[leaf])
      shape = rows[1:]
    for layer in range(config.num_layers):
      yield Tensor(names[leaf].format(layer), leaf, layer, shape)


def layers(
    config: config_lib.ModelConfig, names: Mapping[str, str],
    params: types.Params) -> Iterator[tuple[Tensor, np.ndarray]]:
  """Yields each tensor of a file with its layer of the params, on the host.

  Of several processes all must go through it: each layer is gathered. The host
  keeps none.

  Args:
    config: the model.
    names: as of `tensors`.
    params: its weights.
  """
  flat = tree_paths.flatten(params)
  for tensor in tensors(config, names):
    leaf = flat[tensor.leaf]
    yield tensor, (
        sharding.to_host_uncached(leaf) if tensor.layer is None
        else sharding.to_host(take_layer(leaf, tensor.layer)))


@jax.jit
def take_layer(leaf: types.Array, layer: int) -> types.Array:
  """One layer of a stacked leaf; one program for all of them."""
  return leaf[layer]


def check(
    got: Mapping[str, tuple[int, ...]],
    config: config_lib.ModelConfig,
    names: Mapping[str, str],
    where: str,
) -> None:
  """Checks a file's tensor names and shapes against the config.

  Args:
    got: tensor name -> torch shape, from the file's header.
    config: the model.
    names: leaf name -> tensor name pattern.
    where: the file or directory, for the message.

  Raises:
    ValueError: a missing tensor, an extra one, or one of another shape.
  """
  if config.num_layers > len(got):  # Before names are made for them all.
    raise ValueError(
        f'{where} has {len(got)} tensors, but its config {config.num_layers}'
        ' layers: expected several tensors a layer. Use the config and weights'
        ' of one checkpoint.')
  _check_widths(got, config, where)
  want = {t.name: t.shape for t in tensors(config, names)}
  missing = [name for name in want if name not in got]
  extra = [name for name in got if name not in want]
  wrong = [f'{name} {tuple(got[name])} (wanted {shape})'
           for name, shape in want.items()
           if name in got and tuple(got[name]) != shape]
  found = [f'{what} {_shorten(which)}' for what, which in (
      ('missing', missing), ('extra', extra), ('wrong shape:', wrong)) if which]
  if found:
    raise ValueError(
        f'The tensors in {where} do not fit its config: {"; ".join(found)}.'
        f' Expected exactly the {len(want)} tensors of a {config.num_layers}'
        f'-layer Llama with {"tied" if config.tie_embeddings else "untied"}'
        ' embeddings. Use the config and weights of one checkpoint.')


def _check_widths(
    got: Mapping[str, tuple[int, ...]], config: config_lib.ModelConfig,
    where: str) -> None:
  """Raises ValueError before shapes are traced that no tensor here has."""
  longest = max((max(shape, default=1) for shape in got.values()), default=0)
  widths = {'d_model': config.d_model, 'd_ff': config.d_ff,
            'vocab_size': config.vocab_size,
            'num_heads * d_head': config.num_heads * config.d_head}
  wide = {name: width for name, width in widths.items() if width > longest}
  if wide:
    raise ValueError(
        f'The tensors in {where} do not fit its config, which has {wide}: no'
        f' tensor has over {longest} rows or columns. Use the config and'
        ' weights of one checkpoint.')


def _shorten(items: list[str]) -> str:
  more = ', ...' if len(items) > _SHOWN else ''
  return f'{len(items)} ({", ".join(items[:_SHOWN])}{more})'


def assemble(
    config: config_lib.ModelConfig,
    names: Mapping[str, str],
    read: Callable[[Tensor], np.ndarray],
    dtype: Any,
) -> types.Params:
  """Reads every tensor and stacks them into params, one leaf at a time.

  Args:
    config: the model.
    names: leaf name -> tensor name pattern.
    read: returns one tensor in torch order; `check` has passed.
    dtype: dtype of the params.

  Returns:
    Params on the mesh that is set. On the host there is at most one leaf, and
    of a leaf of over `MOST_ON_HOST` bytes one layer.

  Raises:
    ValueError: a weight is not finite, or not in `dtype`.
  """
  flat = {}
  shapes = tree_paths.flatten(decoder.abstract(config))
  stack = None
  for tensor in tensors(config, names):
    shape, axes = shapes[tensor.leaf].shape, layout.AXES[tensor.leaf]
    whole = tensor.layer is None
    if whole or tensor.layer == 0:
      stack = _stack(shape, dtype, axes, whole)
    rows = read(tensor)
    _check_finite(
        rows, tensor.name, 'not finite; wanted numbers. The checkpoint is'
        ' damaged: fetch or train it anew.')
    with np.errstate(over='ignore'):  # It is told next.
      one = from_torch(rows, tensor.leaf, shape if whole else shape[1:]).astype(
          dtype, copy=False)
    _check_finite(
        one, tensor.name, f'too large for {one.dtype.name}: expected finite'
        ' ones. Give --export_dtype=float32 or bfloat16.')
    stack.add(0 if whole else tensor.layer, one)
    if whole or tensor.layer == config.num_layers - 1:
      flat[tensor.leaf] = stack.done()
  return tree_paths.unflatten(flat)


class _OnHost:
  """A leaf put together on the host."""

  def __init__(self, shape, dtype, axes, whole):
    self._buffer, self._axes = np.empty(shape, dtype), axes
    self._whole = whole

  def add(self, layer: int, one: np.ndarray) -> None:
    target = self._buffer if self._whole else self._buffer[layer]
    target[...] = one

  def done(self) -> types.Array:
    return sharding.shard(self._buffer, self._axes)


class _OnDevices:
  """A leaf put together where it will lie, a layer at a time."""

  def __init__(self, shape, dtype, axes):
    self._leaf = sharding.zeros(shape, dtype, axes)
    self._axes = axes[1:]
    self._set = jax.jit(
        lambda leaf, one, layer: leaf.at[layer].set(one), donate_argnums=0,
        out_shardings=self._leaf.sharding)

  def add(self, layer: int, one: np.ndarray) -> None:
    self._leaf = self._set(self._leaf, sharding.shard(one, self._axes), layer)

  def done(self) -> types.Array:
    return self._leaf


def _stack(shape, dtype, axes, whole):
  size = math.prod(shape) * np.dtype(dtype).itemsize
  if whole or size <= MOST_ON_HOST:
    return _OnHost(shape, dtype, axes, whole)
  return _OnDevices(shape, dtype, axes)


def _check_finite(weights: np.ndarray, name: str, why: str) -> None:
  """Raises ValueError where there are others than numbers."""
  bad = weights.size - np.count_nonzero(np.isfinite(weights))
  if bad:
    raise ValueError(f'{bad} of {weights.size} weights of {name} are {why}')


def from_torch(
    rows: np.ndarray,  # [out, in], or [D]
    leaf: str,
    shape: tuple[int, ...],
) -> np.ndarray:
  """One layer of a leaf in memory order, e.g. [D, N, H]; a view."""
  if leaf not in layout.MATRICES:
    return rows
  axes = _layer_axes(leaf)
  return rows.reshape([shape[a] for a in axes]).transpose(np.argsort(axes))


def to_torch(
    array: np.ndarray,  # one layer in memory order
    tensor: Tensor,
) -> np.ndarray:
  """Inverse of `from_torch`: the tensor in torch's [out, in] order."""
  if tensor.leaf in layout.MATRICES:
    array = array.transpose(_layer_axes(tensor.leaf))
  return np.ascontiguousarray(array.reshape(tensor.shape))


def _layer_axes(leaf: str) -> list[int]:
  """Axes of one layer of a stacked matrix, rows before columns."""
  return [axis - 1 for axis in layout.MATRICES[leaf].permutation[1:]]
