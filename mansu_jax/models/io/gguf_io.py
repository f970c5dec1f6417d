"""Reads `.gguf` files as llama.cpp writes them, and dequantizes the weights.

The converter of the llama architecture reorders the rows of W_Q and W_K so that
rotary pairs are adjacent; this reader restores the order (h, h + H / 2). Norm
weights are stored with the offset of the family (1 + w in Gemma), which it
subtracts. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib
from typing import Any

import gguf
import numpy as np

from mansu_jax import types
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models import families
from mansu_jax.models import layout
from mansu_jax.models.families import family as family_lib
from mansu_jax.models.io import gguf_header
from mansu_jax.runtime import messages

# Tensor of the divisors of the rotary frequencies, [H / 2]. llama.cpp stores
# the scaling of Llama 3.1 in this form.
ROTARY_DIVISORS = 'rope_freqs.weight'
# Field of `longrope` scaling -> tensor of its divisors, [R / 2].
LONGROPE = {'short_factor': 'rope_factors_short.weight',
            'long_factor': 'rope_factors_long.weight'}


@dataclasses.dataclass(frozen=True)
class GgufFile:
  """An open file with parsed metadata; weights are not dequantized yet."""

  path: pathlib.Path
  family: family_lib.Family
  data: np.ndarray  # [bytes] uint8, mapped
  metadata: Mapping[str, Any]
  tensors: Sequence[gguf_header.Tensor]

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Tensor name -> torch shape."""
    return {t.name: t.shape for t in self.tensors}

  @property
  def quantization(self) -> str:
    """Storage format of most weights, for example `Q4_1`."""
    sizes: dict[str, int] = {}
    for tensor in self.tensors:
      kind = tensor.kind.name
      sizes[kind] = sizes.get(kind, 0) + math.prod(tensor.shape)
    return max(sizes, key=sizes.get, default='F32')

  def stored(self, tensor: gguf_header.Tensor) -> np.ndarray:
    """Bytes of a tensor, [..., bytes per row] uint8; a view of the file."""
    end = tensor.start + tensor.size
    return self.data[tensor.start:end].reshape(tensor.bytes_shape)


def open_file(path: pathlib.Path) -> GgufFile:
  """Maps a file, parses its header and checks it.

  Raises:
    ValueError: the file is not GGUF, truncated, damaged, one of several parts,
      or of another architecture.
  """
  with open(path, 'rb') as file:
    magic = file.read(len(gguf_header.MAGIC))
  if magic != gguf_header.MAGIC:
    raise ValueError(
        f'{path} starts with {magic!r}; wanted b\'GGUF\'. Give a GGUF file,'
        ' or a Hugging Face directory.')
  data = np.asarray(np.memmap(path, mode='r'))  # A memmap's slices are slow.
  try:
    metadata, tensors = gguf_header.read(data)
  except ValueError as error:
    raise ValueError(
        f'{path} ({data.size} bytes) cannot be read as GGUF ({error}); wanted'
        ' a complete little-endian file. It is truncated, damaged or of another'
        ' kind; download or convert it again.') from error
  _check_whole(path, metadata)
  return GgufFile(path, _family(path, metadata), data, metadata, tensors)


def _check_whole(path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
  parts = metadata.get(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, 1)
  if parts not in (0, 1):
    raise ValueError(
        f'{path} is one of {messages.shorten(parts)} parts of a model;'
        ' wanted a single file. Merge the parts with llama.cpp\'s'
        ' `llama-gguf-split --merge`.')


def _family(
    path: pathlib.Path, metadata: Mapping[str, Any]) -> family_lib.Family:
  """The family of the architecture."""
  known = {family.gguf.architecture: family
           for family in families.FAMILIES.values() if family.gguf is not None}
  architecture = metadata.get('general.architecture')
  if not isinstance(architecture, str) or architecture not in known:
    raise ValueError(
        f'{path} has `general.architecture: {messages.bare(architecture)}`;'
        ' wanted one of those that this version supports:'
        f' {", ".join(known)}. Use another file.')
  return known[architecture]


def read_params(
    file: GgufFile, config: config_lib.ModelConfig, dtype: Any
) -> types.Params:
  """Dequantizes all tensors to float32 and stacks them in `dtype`.

  Raises:
    ValueError: tensors are missing, unexpected or of another shape, or the
      `gguf` package cannot dequantize their format. Both are checked before the
      weights are read.
  """
  for tensor in {t.kind: t for t in file.tensors}.values():
    _check_format(file, tensor)
  form, shapes, scaling = file.family.gguf, dict(file.shapes), (
      config.rope_scaling)
  for kind, names in (('llama3', (ROTARY_DIVISORS,)),
                      ('longrope', LONGROPE.values())):
    if scaling is not None and scaling.kind == kind:
      for name in names:
        shapes.pop(name, None)
  assemble.check(shapes, config, form.naming, str(file.path))
  by_name = {t.name: t for t in file.tensors}

  def read(tensor: assemble.Tensor) -> np.ndarray:
    stored = by_name[tensor.name]
    rows = _dequantize(file.stored(stored), stored)
    leaf = tensor.leaves[0]
    if layout.LEAVES[leaf].start == 'norm' and config.norm_offset:
      with np.errstate(invalid='ignore'):  # Signaling NaNs are only NaNs.
        return rows - np.float32(config.norm_offset)
    heads = {'layers/attn/q': config.num_heads,
             'layers/attn/k': config.num_kv_heads}.get(leaf)
    if heads is None or not form.pairs_rotary:
      return rows
    return _unpair_rotary(rows, heads)

  return assemble.assemble(config, form.naming, read, dtype)


def read_values(file: GgufFile, name: str) -> np.ndarray:
  """Dequantizes one tensor.

  Raises:
    ValueError: the `gguf` package cannot dequantize its format.
  """
  (tensor,) = (t for t in file.tensors if t.name == name)
  _check_format(file, tensor)
  return _dequantize(file.stored(tensor), tensor)


def _check_format(file: GgufFile, tensor: gguf_header.Tensor) -> None:
  """Raises ValueError if one row of a tensor cannot be dequantized."""
  stored = file.stored(tensor)
  try:
    _dequantize(stored.reshape(-1, stored.shape[-1])[0], tensor)
  except NotImplementedError as error:
    raise ValueError(
        f'{file.path} stores {tensor.name} as {tensor.kind.name}; wanted a'
        ' format that the gguf package dequantizes (F32, F16, BF16, Q4_0 ..'
        ' Q8_0, Q2_K .. Q6_K, ...). Requantize it or use another file.'
    ) from error


def _dequantize(
    stored: np.ndarray,  # [..., bytes per row] uint8
    tensor: gguf_header.Tensor) -> np.ndarray:
  """Float32 values; in damaged files, scales may overflow to infinity."""
  with np.errstate(over='ignore', invalid='ignore'):
    return gguf.dequantize(stored, tensor.kind)


def _unpair_rotary(
    rows: np.ndarray,  # [heads * H, D], rotary pairs adjacent
    heads: int,
) -> np.ndarray:
  """Inverts llama.cpp's row order, so that (h, h + H / 2) are pairs."""
  paired = rows.reshape(heads, -1, 2, rows.shape[-1])  # [heads, H / 2, 2, D]
  return paired.swapaxes(1, 2).reshape(rows.shape)
