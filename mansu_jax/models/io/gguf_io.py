"""Reads `.gguf` files of the llama architecture and dequantizes the weights.

llama.cpp's converter reorders the rows of W_Q and W_K so that rotary pairs are
adjacent. This reader restores the order (h, h + H / 2). Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
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
from mansu_jax.models import rotary
from mansu_jax.models.io import gguf_header
from mansu_jax.models.io import gguf_tokenizer

NAMING = assemble.Naming({
    'embed': 'token_embd.weight',
    'final_norm': 'output_norm.weight',
    'lm_head': 'output.weight',
    'layers/attn_norm': 'blk.{}.attn_norm.weight',
    'layers/mlp_norm': 'blk.{}.ffn_norm.weight',
    'layers/attn/q': 'blk.{}.attn_q.weight',
    'layers/attn/k': 'blk.{}.attn_k.weight',
    'layers/attn/v': 'blk.{}.attn_v.weight',
    'layers/attn/o': 'blk.{}.attn_output.weight',
    'layers/mlp/gate': 'blk.{}.ffn_gate.weight',
    'layers/mlp/up': 'blk.{}.ffn_up.weight',
    'layers/mlp/down': 'blk.{}.ffn_down.weight',
})

# Tensor of the divisors of the rotary frequencies, [H / 2]. llama.cpp stores
# the scaling of Llama 3.1 in this form.
ROTARY_DIVISORS = 'rope_freqs.weight'
_LLAMA3_FACTORS = (8.0, 32.0)  # Llama 3.1 and 3.2.

# Keys of the llama architecture that define the config.
_REQUIRED = frozenset({
    'block_count', 'context_length', 'embedding_length',
    'feed_forward_length', 'attention.head_count',
    'attention.layer_norm_rms_epsilon'})
_OPTIONAL = frozenset({
    'attention.head_count_kv', 'attention.key_length',
    'attention.value_length', 'rope.dimension_count', 'rope.freq_base',
    'rope.scaling.type', 'rope.scaling.factor', 'vocab_size'})


@dataclasses.dataclass(frozen=True)
class GgufFile:
  """An open file with parsed metadata; weights are not dequantized yet."""

  path: pathlib.Path
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
  _check_whole_llama(path, metadata)
  return GgufFile(path, data, metadata, tensors)


def _check_whole_llama(
    path: pathlib.Path, metadata: Mapping[str, Any]) -> None:
  parts = metadata.get(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, 1)
  if parts not in (0, 1):
    raise ValueError(
        f'{path} is one of {gguf_header.shorten(parts)} parts of a model;'
        ' wanted a single file. Merge the parts with llama.cpp\'s'
        ' `llama-gguf-split --merge`.')
  architecture = metadata.get('general.architecture')
  if architecture != 'llama':
    found = gguf_header.shorten(architecture).strip('\'"')
    raise ValueError(
        f'{path} has `general.architecture: {found}`; wanted'
        ' `general.architecture: llama`, the only one that this version'
        ' supports. Use another file.')


def read_config(file: GgufFile) -> config_lib.ModelConfig:
  """Builds the config from the metadata.

  Raises:
    ValueError: a `llama.*` key is missing or unknown, or a value is not
      supported.
  """
  prefix = 'llama.'
  found = {key.removeprefix(prefix): value
           for key, value in file.metadata.items() if key.startswith(prefix)}
  _check_keys(file.path, found)
  heads, width = found['attention.head_count'], found['embedding_length']
  if heads < 1:
    raise ValueError(
        f'{file.path} has llama.attention.head_count = {heads}; wanted a'
        ' positive number. Convert the model again.')
  d_head = found.get('attention.key_length', width // heads)
  for key in ('attention.value_length', 'rope.dimension_count'):
    if found.get(key, d_head) != d_head:
      raise ValueError(
          f'{file.path} has llama.{key} = {found[key]}; wanted the head'
          f' width {d_head}. Partial rotary positions and unequal head widths'
          ' are not implemented; use another model.')
  keys = gguf_tokenizer.ggml_keys(file.metadata)
  token = lambda name: gguf_tokenizer.special_id(keys, name)
  config = config_lib.ModelConfig(
      vocab_size=file.shapes.get(NAMING.names['embed'], (1,))[0],
      d_model=width,
      num_layers=found['block_count'],
      num_heads=heads,
      num_kv_heads=found.get('attention.head_count_kv', heads),
      d_head=d_head,
      d_ff=found['feed_forward_length'],
      rope_theta=_shortest_decimal(found.get('rope.freq_base', 10_000.0)),
      rope_scaling=_rope_scaling(file.path, found),
      norm_eps=_shortest_decimal(found['attention.layer_norm_rms_epsilon']),
      tie_embeddings=NAMING.names['lm_head'] not in file.shapes,
      max_position=found['context_length'],
      bos_token_id=token('bos'),
      eos_token_id=token('eos'),
      pad_token_id=token('padding'))
  if ROTARY_DIVISORS in file.shapes:
    scaling = _llama3_scaling(file, config)
    config = dataclasses.replace(config, rope_scaling=scaling)
  return config


def _llama3_scaling(
    file: GgufFile, config: config_lib.ModelConfig
) -> config_lib.RopeScaling:
  """The scaling that gives the divisors in the file."""
  (tensor,) = (t for t in file.tensors if t.name == ROTARY_DIVISORS)
  _check_format(file, tensor)
  divisors = _dequantize(file.stored(tensor), tensor)
  right_shape = divisors.shape == (config.d_head // 2,)
  factors = (float(divisors.max(initial=1)), *_LLAMA3_FACTORS)
  for factor in factors if right_shape else ():
    scaling = config_lib.RopeScaling(
        kind='llama3', factor=factor, low_freq_factor=1.0,
        high_freq_factor=4.0, original_max_position=8192)
    want = 1 / rotary.llama3_shrinkage(
        dataclasses.replace(config, rope_scaling=scaling))
    if np.allclose(divisors, want, 1e-5, 0):
      return scaling
  raise ValueError(
      f'{file.path} divides rotary frequencies by {_format(divisors)}; wanted'
      f' the {config.d_head // 2} divisors of Llama 3.1 (bands 1 and 4 of 8192'
      ' tokens). Use the Hugging Face directory of this model.')


def _format(values: np.ndarray) -> str:
  """The first four values, for a message."""
  more = ', ...' if values.size > 4 else ''
  return f'{", ".join(f"{x:.4g}" for x in values.flat[:4])}{more}'


def _check_keys(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  missing = sorted(_REQUIRED - found.keys())
  if missing:
    raise ValueError(
        f'{path} lacks the llama keys {missing}; wanted'
        f' {sorted(_REQUIRED)}. Convert the model again.')
  unknown = sorted(found.keys() - _REQUIRED - _OPTIONAL)
  if unknown:
    raise ValueError(
        f'{path} has the unknown llama keys {gguf_header.shorten(unknown)};'
        ' wanted only known keys, because another key may change the'
        ' computation. Use another file.')
  for key, value in found.items():
    kind = str if key == 'rope.scaling.type' else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool):
      raise ValueError(
          f'{path} has llama.{key} = {gguf_header.shorten(value)}; wanted one'
          f' {"name" if kind is str else "number"}. Per-layer values are not'
          ' implemented; use another file.')


def _rope_scaling(
    path: pathlib.Path, found: Mapping[str, Any]
) -> config_lib.RopeScaling | None:
  kind = found.get('rope.scaling.type', 'none')
  if kind == 'none':
    return None
  if kind != 'linear':
    raise ValueError(
        f'{path} has llama.rope.scaling.type = {gguf_header.shorten(kind)};'
        ' wanted \'none\' or \'linear\'. Use the Hugging Face directory of'
        ' this model.')
  return config_lib.RopeScaling(
      kind=kind, factor=_shortest_decimal(found.get('rope.scaling.factor', 1)))


def _shortest_decimal(value: float) -> float:
  """The shortest decimal that rounds to this float32.

  GGUF stores 1e-5 as 9.99999975e-6; this function returns 1e-5.
  """
  with np.errstate(over='ignore'):  # The config refuses infinity.
    return float(str(np.float32(value)))


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
  shapes = dict(file.shapes)
  if config.rope_scaling is not None and config.rope_scaling.kind == 'llama3':
    shapes.pop(ROTARY_DIVISORS, None)
  assemble.check(shapes, config, NAMING, str(file.path))
  by_name = {t.name: t for t in file.tensors}

  def read(tensor: assemble.Tensor) -> np.ndarray:
    stored = by_name[tensor.name]
    rows = _dequantize(file.stored(stored), stored)
    heads = {'layers/attn/q': config.num_heads,
             'layers/attn/k': config.num_kv_heads}.get(*tensor.leaves)
    return rows if heads is None else _unpair_rotary(rows, heads)

  return assemble.assemble(config, NAMING, read, dtype)


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
