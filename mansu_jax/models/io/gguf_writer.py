"""Writes `.gguf` files of the llama architecture in float32, for llama.cpp.

Like llama.cpp's converter, the writer reorders the rows of W_Q and W_K so that
rotary pairs are adjacent, and stores the vocabulary of a byte-level tokenizer.
It omits other tokenizers; llama.cpp then accepts token ids only.

These lines convert the model of `python -m mansu_jax.main --workdir=run ...`:

    model = loading.load('run/model')
    gguf_writer.write(
        'model.gguf', model.config, model.params, model.tokenizer)
"""

from __future__ import annotations

from collections.abc import Mapping
import contextlib
import json
import pathlib
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.data import tokenization
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.models import families
from mansu_jax.models import rotary
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_words
from mansu_jax.quant import leaves
from mansu_jax.runtime import files

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # Token types.


def write(
    path: str | pathlib.Path, config: config_lib.ModelConfig,
    params: types.Params, tokenizer: types.PretrainedTokenizer | None
) -> str | None:
  """Writes a file atomically.

  Args:
    path: Target file; an existing file is replaced.
    config: Config of the model.
    params: Params of the model.
    tokenizer: A transformers fast tokenizer, or None.

  Returns:
    Name of the tokenizer's word rule, such as `smollm`; None if the file has no
    vocabulary.

  Raises:
    ValueError: the model is no Llama, its rotary scaling is another than
      `linear` or `llama3`, or params do not match the config or are not finite.
    OSError: the disk is full, or the folder is not writable.
  """
  if config.family != 'llama':
    raise ValueError(
        f'The model is of the family {config.family!r}; wanted `llama`, the'
        ' only one that this version writes as GGUF. Write a Hugging Face'
        ' directory and convert it with llama.cpp.')
  scaling = config.rope_scaling
  if scaling is not None and scaling.kind not in ('linear', 'llama3'):
    raise ValueError(
        f'The model has the rotary scaling {scaling.kind!r}; wanted `linear` or'
        ' `llama3`, which this version writes as GGUF. Write a Hugging Face'
        ' directory and convert it with llama.cpp.')
  tree_paths.check_same_structure(params, decoder.abstract(config), 'Params')
  for name, leaf in tree_paths.flatten(params).items():
    leaves.check_finite(jnp.asarray(leaf), name, 'Parameter')
  with files.replacing(pathlib.Path(path)) as temporary:
    words = _write(temporary, config, params, tokenizer)
    _check_written(temporary, pathlib.Path(path))
    return words


def _write(
    path: pathlib.Path, config: config_lib.ModelConfig, params: types.Params,
    tokenizer: types.PretrainedTokenizer | None) -> str | None:
  with contextlib.closing(gguf.GGUFWriter(path, 'llama')) as writer:
    _add_config(writer, config)
    words = _add_tokenizer(writer, config, tokenizer)
    for tensor, (layer,) in assemble.layers(
        config, families.FAMILIES['llama'].gguf.naming, params):
      writer.add_tensor(tensor.name, _rows(config, layer, tensor))
    if _has_kind(config, 'llama3'):
      writer.add_tensor(gguf_io.ROTARY_DIVISORS, (
          1 / rotary.llama3_shrinkage(config)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    return words


def _check_written(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Raises OSError if the disk was full; `numpy.tofile` ignores some errors."""
  try:
    gguf_io.open_file(temporary)
  except ValueError as error:
    raise OSError(
        f'{path} cannot be written: only {temporary.stat().st_size} bytes of it'
        ' were stored') from error


def _has_kind(config: config_lib.ModelConfig, kind: str) -> bool:
  scaling = config.rope_scaling
  return scaling is not None and scaling.kind == kind


def _add_config(
    writer: gguf.GGUFWriter, config: config_lib.ModelConfig) -> None:
  writer.add_file_type(gguf.LlamaFileType.ALL_F32)
  writer.add_vocab_size(config.vocab_size)
  writer.add_block_count(config.num_layers)
  writer.add_context_length(config.max_position)
  writer.add_embedding_length(config.d_model)
  writer.add_feed_forward_length(config.d_ff)
  writer.add_head_count(config.num_heads)
  writer.add_head_count_kv(config.num_kv_heads)
  writer.add_key_length(config.d_head)
  writer.add_value_length(config.d_head)
  writer.add_rope_dimension_count(config.d_head)
  writer.add_rope_freq_base(config.rope_theta)
  writer.add_layer_norm_rms_eps(config.norm_eps)
  if _has_kind(config, 'linear'):
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config.rope_scaling.factor)


def _rows(
    config: config_lib.ModelConfig, layer: np.ndarray,
    tensor: assemble.Tensor) -> np.ndarray:
  """Rows of one tensor in the order of the file."""
  rows = assemble.to_torch([layer.astype(np.float32)], tensor)
  heads = {'layers/attn/q': config.num_heads,
           'layers/attn/k': config.num_kv_heads}.get(*tensor.leaves)
  return rows if heads is None else _pair_rotary(rows, heads)


def _pair_rotary(
    rows: np.ndarray,  # [heads * H, D]
    heads: int,
) -> np.ndarray:
  """Reorders rows like llama.cpp: the pairs (h, h + H / 2) are adjacent."""
  halves = rows.reshape(heads, 2, -1, rows.shape[-1])  # [heads, 2, H / 2, D]
  return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _add_tokenizer(
    writer: gguf.GGUFWriter, config: config_lib.ModelConfig,
    tokenizer: types.PretrainedTokenizer | None) -> str | None:
  fields = _fields(tokenizer)
  words = gguf_words.word_rule(fields) if fields else None
  start = tokenization.prefix_ids(tokenizer) if words else []
  if words is None or start not in ([], [config.bos_token_id]):
    writer.add_tokenizer_model('none')
    return None
  writer.add_tokenizer_model('gpt2')
  writer.add_tokenizer_pre(words)
  tokens, kinds = _vocabulary(fields, config.vocab_size)
  writer.add_token_list(tokens)
  writer.add_token_types(kinds)
  writer.add_token_merges([
      merge if isinstance(merge, str) else ' '.join(merge)
      for merge in fields['model']['merges']])
  _add_special(writer, config, tokenizer)
  writer.add_add_bos_token(bool(start))
  if isinstance(getattr(tokenizer, 'chat_template', None), str):
    writer.add_chat_template(tokenizer.chat_template)
  return words


def _fields(
    tokenizer: types.PretrainedTokenizer | None) -> dict[str, Any] | None:
  """Fields of the tokenizer's `tokenizer.json`, or None."""
  backend = getattr(tokenizer, 'backend_tokenizer', None)
  return None if backend is None else json.loads(backend.to_str())


def _vocabulary(
    fields: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
  """Tokens by id and their types; unused ids get placeholders."""
  tokens = [f'[PAD{i}]' for i in range(size)]
  kinds = [_UNUSED] * size
  for token, i in fields['model']['vocab'].items():
    tokens[i], kinds[i] = token, _NORMAL
  for added in fields['added_tokens']:
    tokens[added['id']] = added['content']
    kinds[added['id']] = _CONTROL if added['special'] else _USER_DEFINED
  return tokens, kinds


def _add_special(
    writer: gguf.GGUFWriter, config: config_lib.ModelConfig,
    tokenizer: types.PretrainedTokenizer) -> None:
  eos = config.eos_token_id
  ids = {
      writer.add_bos_token_id: config.bos_token_id,
      writer.add_eos_token_id: eos[0] if isinstance(eos, tuple) else eos,
      writer.add_unk_token_id: tokenizer.unk_token_id,
      writer.add_pad_token_id: config.pad_token_id}
  for add, value in ids.items():
    if value is not None:
      add(value)
