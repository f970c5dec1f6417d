"""Reads the config of a `.gguf` file, from its metadata and rotary tensors.

The keys become the fields of a `config.json` of the family, so that the family
has one description of what its layers compute. `families/gguf_form.py` says
which keys a family has; another key of the architecture is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models import rotary
from mansu_jax.models.families import family as family_lib
from mansu_jax.models.families import rope
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_tokenizer
from mansu_jax.runtime import messages

# Key without its architecture -> field, by the name that most families have.
_WHOLE = {
    'block_count': 'num_hidden_layers',
    'context_length': 'max_position_embeddings',
    'embedding_length': 'hidden_size',
    'feed_forward_length': 'intermediate_size',
    'attention.head_count': 'num_attention_heads',
    'attention.head_count_kv': 'num_key_value_heads',
    'attention.key_length': 'head_dim',
    'attention.sliding_window': 'sliding_window'}
_REAL = {
    'attention.layer_norm_epsilon': 'rms_norm_eps',
    'attention.layer_norm_rms_epsilon': 'rms_norm_eps',
    'attn_logit_softcapping': 'attn_logit_softcapping',
    'final_logit_softcapping': 'final_logit_softcapping',
    'rope.freq_base_swa': 'rope_local_base_freq'}
_ALSO_WHOLE = frozenset({
    'attention.value_length', 'rope.dimension_count',
    'rope.scaling.original_context_length', 'vocab_size'})
# Of rotary scalings: key without `rope.scaling.` -> field.
_SCALING = {
    'factor': 'factor',
    'original_context_length': 'original_max_position_embeddings',
    'attn_factor': 'attention_factor',
    'yarn_beta_fast': 'beta_fast', 'yarn_beta_slow': 'beta_slow'}
_SCALING_OF = {
    'none': (), 'linear': ('factor',),
    'yarn': ('factor', 'original_context_length', 'yarn_beta_fast',
             'yarn_beta_slow'),
    'longrope': ('original_context_length', 'attn_factor')}
_PATTERN = 'attention.sliding_window_pattern'
_SCALING_TYPE = 'rope.scaling.type'
_WITHOUT_EFFECT = frozenset({'rope.scaling.finetuned', 'tensor_data_layout'})
_EXPERTS = frozenset({'expert_count', 'expert_used_count'})  # Of dense ones: 0.
_THETA = 10_000.0  # llama.cpp's base of the frequencies without a key.

_LLAMA3_FACTORS = (8.0, 32.0)  # Llama 3.1 and 3.2.


def read_config(
    file: gguf_io.GgufFile, ignore: Collection[str] = ()
) -> config_lib.ModelConfig:
  """Builds the config from the metadata.

  Args:
    file: the file.
    ignore: unknown keys to ignore, without the architecture.

  Raises:
    ValueError: a key of the architecture is missing or unknown, or a value is
      not supported.
  """
  family = file.family
  found = {
      key.removeprefix(f'{family.gguf.architecture}.'): value
      for key, value in file.metadata.items()
      if key.startswith(f'{family.gguf.architecture}.')}
  known = family.gguf.required | family.gguf.optional
  found = {key: value for key, value in found.items()
           if key in known or key not in _WITHOUT_EFFECT and key not in ignore
           and not (key in _EXPERTS and value == 0)}
  _check_keys(file, found)
  assemble.check_layers(found['block_count'], len(file.tensors), str(file.path))
  fields = _fields(file, found)
  _check_widths(file, found, fields)
  config = family.from_common(
      fields | family.gguf.derive(fields), str(file.path))
  if gguf_io.ROTARY_DIVISORS not in file.shapes:
    return config
  return dataclasses.replace(
      config, rope_scaling=_llama3_scaling(file, config))


def _fields(
    file: gguf_io.GgufFile, found: Mapping[str, Any]) -> family_lib.Fields:
  """The fields of a `config.json`, by the names that most families have."""
  names, keys = file.family.gguf.names, gguf_tokenizer.ggml_keys(file.metadata)
  token = lambda name: gguf_tokenizer.special_id(keys, name)
  heads = found['attention.head_count']
  if heads < 1:
    raise ValueError(
        f'{file.path} has {_key(file, "attention.head_count")} = {heads};'
        ' wanted a positive number. Convert the model again.')
  if names['embed'] not in file.shapes:
    raise ValueError(
        f'{file.path} lacks the tensor {names["embed"]}; wanted the embedding.'
        ' Convert the model again.')
  fields = {
      'model_type': file.family.model_type,
      'vocab_size': file.shapes[names['embed']][0],
      'num_key_value_heads': heads,
      'head_dim': found['embedding_length'] // heads,
      'tie_word_embeddings': names['lm_head'] not in file.shapes,
      'bos_token_id': token('bos'), 'eos_token_id': token('eos'),
      'pad_token_id': token('padding')}
  fields |= {field: found[key] for key, field in _WHOLE.items() if key in found}
  fields |= {field: shortest_decimal(found[key])
             for key, field in _REAL.items() if key in found}
  if _PATTERN in found:
    fields['layer_types'] = _layer_types(file, found)
  return fields | _rope_fields(file, found, fields['head_dim'])


def _check_widths(
    file: gguf_io.GgufFile, found: Mapping[str, Any], fields: family_lib.Fields
) -> None:
  """Raises ValueError for widths that the file has otherwise, too."""
  family, width = file.family, fields['head_dim']
  if found.get('vocab_size', fields['vocab_size']) != fields['vocab_size']:
    raise ValueError(
        f'{file.path} has {_key(file, "vocab_size")} = {found["vocab_size"]};'
        f' wanted {fields["vocab_size"]}, the rows of the embedding. Convert'
        ' the model again.')
  if min(width, fields['hidden_size'] // fields['num_attention_heads']) < 1:
    raise ValueError(
        f'{file.path} has heads of width {width} and'
        f' {_key(file, "embedding_length")} = {fields["hidden_size"]} for'
        f' {fields["num_attention_heads"]} heads; wanted positive widths.'
        ' Convert the model again.')
  wanted = {'attention.value_length': width}
  if not (family.partly_rotary and 0 < found.get(
      'rope.dimension_count', width) <= width):
    wanted['rope.dimension_count'] = width
  if 'head_dim' in family.without:
    wanted |= {'attention.key_length': (
        fields['hidden_size'] // fields['num_attention_heads'])}
  for key, value in wanted.items():
    if found.get(key, value) != value:
      raise ValueError(
          f'{file.path} has {_key(file, key)} = {found[key]}; wanted the head'
          f' width {value}. Partial rotary positions of'
          f' {family.gguf.architecture} and unequal head widths are not'
          ' implemented; use another model.')
  heads = fields['num_attention_heads']
  if 'num_key_value_heads' in family.without and (
      fields['num_key_value_heads'] != heads):
    raise ValueError(
        f'{file.path} has {_key(file, "attention.head_count_kv")} ='
        f' {fields["num_key_value_heads"]}; wanted {heads}, the number of'
        ' query heads. Use another model.')


def _layer_types(
    file: gguf_io.GgufFile, found: Mapping[str, Any]) -> list[str]:
  """Kind of each layer, from a period or a flag per layer."""
  pattern, layers = found[_PATTERN], found['block_count']
  if isinstance(pattern, int):
    pattern = [(layer + 1) % pattern > 0 for layer in range(layers)]
  if len(pattern) != layers:
    raise ValueError(
        f'{file.path} has {_key(file, _PATTERN)} with {len(pattern)} values;'
        f' wanted {layers}, one per layer, or a period. Convert the model'
        ' again.')
  return ['sliding_attention' if x else 'full_attention' for x in pattern]


def _check_keys(file: gguf_io.GgufFile, found: Mapping[str, Any]) -> None:
  form = file.family.gguf
  missing = sorted(form.required - found.keys())
  if missing:
    raise ValueError(
        f'{file.path} lacks the {form.architecture} keys {missing}; wanted'
        f' {sorted(form.required)}. Convert the model again.')
  unknown = sorted(found.keys() - form.required - form.optional)
  if unknown:
    raise ValueError(
        f'{file.path} has the unknown {form.architecture} keys'
        f' {messages.shorten(unknown)}; wanted only known keys, because'
        ' another key may change the computation. Use another file or, if they'
        ' have no effect, give'
        f' --model_ignore_fields={messages.one_line(",".join(unknown))}.')
  for key, value in found.items():
    if key == _PATTERN and _is_pattern(value):
      continue
    kinds, wanted = (int, float), 'one number'
    if key == _SCALING_TYPE:
      kinds, wanted = (str,), 'one name'
    elif key in _WHOLE or key in _ALSO_WHOLE:
      kinds, wanted = (int,), 'one whole number'
    if not isinstance(value, kinds) or isinstance(value, bool) or (
        key == _PATTERN):
      raise ValueError(
          f'{file.path} has {_key(file, key)} = {messages.shorten(value)};'
          f' wanted {wanted}. Per-layer values are not implemented; use another'
          ' file.')


def _is_pattern(value: Any) -> bool:
  """Whether this is a period, or numbers or flags of layers."""
  if isinstance(value, int) and not isinstance(value, bool):
    return value > 0
  return not isinstance(value, (str, float, bool, int)) and not any(
      isinstance(x, (str, list)) for x in value)


def _rope_fields(
    file: gguf_io.GgufFile, found: Mapping[str, Any], width: int
) -> dict[str, Any]:
  """The fields of rotary positions."""
  rotated = found.get('rope.dimension_count', width)
  fields = {
      'rope_theta': shortest_decimal(found.get('rope.freq_base', _THETA)),
      'rope_scaling': _rope_scaling(file, found)}
  if 0 < rotated < width:
    fields['partial_rotary_factor'] = rope.share_of(rotated, width)
  return fields


def _rope_scaling(
    file: gguf_io.GgufFile, found: Mapping[str, Any]) -> dict[str, Any] | None:
  """The scaling as in a `config.json`; None if there is none."""
  wanted = sorted(gguf_io.LONGROPE.values())
  factors = [name for name in wanted if name in file.shapes]
  kind = found.get(_SCALING_TYPE, 'longrope' if factors else 'none')
  known = _SCALING_OF.get(kind)
  if known is None or factors != (wanted if kind == 'longrope' else []):
    raise ValueError(
        f'{file.path} has {_key(file, _SCALING_TYPE)} ='
        f' {messages.shorten(kind)} and the tensors of rotary factors'
        f' {factors}; wanted one of {list(_SCALING_OF)}, and {wanted} with'
        ' \'longrope\' alone. Use the Hugging Face directory of this model.')
  given = {key: found[f'rope.scaling.{key}'] for key in _SCALING
           if f'rope.scaling.{key}' in found}
  if given.get('attn_factor', 1) != 1 and 'attn_factor' not in known:
    raise ValueError(
        f'{file.path} has {_key(file, "rope.scaling.attn_factor")} ='
        f' {given["attn_factor"]} and rotary scaling {kind!r}; wanted 1. Use'
        ' the Hugging Face directory of this model.')
  if kind == 'none':
    return None
  scaling = {'rope_type': kind} | {
      _SCALING[key]: value if isinstance(value, int) else (
          shortest_decimal(value))
      for key, value in given.items() if key in known}
  if kind == 'linear':
    scaling.setdefault('factor', 1.0)
  if kind == 'longrope':
    scaling |= {name: list(map(shortest_decimal, gguf_io.read_values(
        file, tensor).flat)) for name, tensor in gguf_io.LONGROPE.items()}
  return scaling


def _llama3_scaling(
    file: gguf_io.GgufFile, config: config_lib.ModelConfig
) -> config_lib.RopeScaling:
  """The scaling that gives the divisors in the file."""
  divisors = gguf_io.read_values(file, gguf_io.ROTARY_DIVISORS)
  width = config.d_rotary or config.d_head
  right_shape = divisors.shape == (width // 2,)
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
      f' the {width // 2} divisors of Llama 3.1 (bands 1 and 4 of 8192'
      ' tokens). Use the Hugging Face directory of this model.')


def _format(values: np.ndarray) -> str:
  """The first four values, for a message."""
  more = ', ...' if values.size > 4 else ''
  return f'{", ".join(f"{x:.4g}" for x in values.flat[:4])}{more}'


def _key(file: gguf_io.GgufFile, key: str) -> str:
  """A key with its architecture, for a message."""
  return f'{file.family.gguf.architecture}.{key}'


def shortest_decimal(value: float) -> float:
  """The shortest decimal that rounds to this float32.

  GGUF stores 1e-5 as 9.99999975e-6; this function returns 1e-5.
  """
  with np.errstate(over='ignore'):  # The config refuses infinity.
    return float(str(np.float32(value)))
