"""Gemma 3, text only: norms of queries and keys, two rotary bases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mansu_jax.models import config as config_lib
from mansu_jax.models.families import family
from mansu_jax.models.families import gemma2
from mansu_jax.models.families import gguf_form
from mansu_jax.models.families import rope
from mansu_jax.runtime import messages

_FULL, _WITHIN = rope.PARTS


def _normalize(fields: family.Fields, where: str) -> family.Fields:
  """Takes rotary parameters of each kind of layer apart, as older files do."""
  parts = fields.get('rope_parameters')
  if not isinstance(parts, dict) or not parts.keys() & set(rope.PARTS):
    return fields
  others = sorted(parts.keys() - set(rope.PARTS))
  if others:
    raise ValueError(
        f'{where} has rope_parameters with {messages.shorten(others)}; wanted'
        f' only {list(rope.PARTS)}, a part for each kind of layer. Use another'
        ' model.')
  family.check_kinds(
      parts, dict.fromkeys(rope.PARTS, (dict,)), f'{where}, rope_parameters')
  within = {name: value for name, value in (parts.get(_WITHIN) or {}).items()
            if value is not None}
  theta = within.pop('rope_theta', None)
  if any(within.pop(name, 'default') != 'default'
         for name in ('rope_type', 'type')) or within.keys() & rope.KINDS:
    raise ValueError(
        f'{where} has rotary scaling in layers with a window,'
        f' {messages.shorten(parts[_WITHIN])}; wanted rope_theta alone. Use'
        ' another model.')
  found = {**fields, 'rope_parameters': {**(parts.get(_FULL) or {}), **within}}
  return found if theta is None else {**found, 'rope_local_base_freq': theta}


def _read(get: Callable[[str], Any], where: str) -> dict[str, Any]:
  return gemma2.read(get, where, get('sliding_window_pattern')) | {
      'qk_norm': True, 'window_rope_theta': float(get('rope_local_base_freq'))}


def _write(config: config_lib.ModelConfig) -> dict[str, Any]:
  return gemma2.write(config) | {
      'rope_local_base_freq': config.window_rope_theta}


def _derive(fields: family.Fields) -> dict[str, Any]:
  """Further fields of a `.gguf` file: one without a window has none."""
  return {'sliding_window': None, **fields} | gemma2.gguf_scale(
      fields, layers_of_27b=62)


FAMILY = family.Family(
    model_type='gemma3_text', architecture='Gemma3ForCausalLM',
    members='Gemma 3 without images', activations=gemma2.ACTIVATIONS,
    names=gemma2.NAMES, required=frozenset({'num_key_value_heads'}),
    optional=gemma2.OPTIONAL | {
        'max_position_embeddings': 131_072, 'rope_theta': 1e6,
        'rope_local_base_freq': 10_000.0, 'sliding_window_pattern': 6},
    fields=gemma2.FIELDS, fixed=gemma2.FIXED, kinds=gemma2.KINDS | {
        'rope_local_base_freq': (int, float), 'sliding_window_pattern': (int,)},
    positive=gemma2.POSITIVE | {
        'rope_local_base_freq', 'sliding_window_pattern'},
    ignored=gemma2.IGNORED | {'_sliding_window_pattern'},
    read=_read, write=_write, normalize=_normalize, gguf=gguf_form.GgufForm(
        architecture='gemma3', names=gemma2.GGUF_NAMES,
        keys=gemma2.GGUF_KEYS | {'rope.freq_base_swa'}, derive=_derive))
