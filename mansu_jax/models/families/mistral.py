"""Mistral: Llama whose layers may read a window only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mansu_jax.models import config as config_lib
from mansu_jax.models.families import family


def _read(get: Callable[[str], Any], where: str) -> dict[str, Any]:
  layers = get('num_hidden_layers')
  return {'windows': family.layer_windows(
      get, get('sliding_window'), [True] * layers, where)}


def _write(config: config_lib.ModelConfig) -> dict[str, Any]:
  found = {'sliding_window': max(config.windows, default=None)}
  if 0 in config.windows:
    found['layer_types'] = family.layer_types(config)
  return found


FAMILY = family.Family(
    model_type='mistral', architecture='MistralForCausalLM',
    members='Mistral 7B', required=frozenset({'num_key_value_heads'}),
    optional={
        'bos_token_id': 1, 'eos_token_id': 2, 'sliding_window': 4096,
        'max_position_embeddings': 4096 * 32, 'layer_types': None},
    kinds={'sliding_window': (int,), 'layer_types': (list,)},
    read=_read, write=_write)
