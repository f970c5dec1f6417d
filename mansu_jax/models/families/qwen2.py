"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mansu_jax.models import config as config_lib
from mansu_jax.models.families import family
from mansu_jax.models.families import gguf_form

OPTIONAL = {
    'max_position_embeddings': 32768, 'sliding_window': 4096,
    'use_sliding_window': False, 'max_window_layers': 28, 'layer_types': None}
KINDS = {'sliding_window': (int,), 'use_sliding_window': (bool,),
         'max_window_layers': (int,), 'layer_types': (list,)}


def windows(get: Callable[[str], Any], where: str) -> dict[str, Any]:
  """The windows of the layers from `max_window_layers` on, if in use."""
  window = get('sliding_window') if get('use_sliding_window') else None
  return {'windows': family.layer_windows(
      get, window, [layer >= get('max_window_layers')
                    for layer in range(get('num_hidden_layers'))], where)}


def write(config: config_lib.ModelConfig) -> dict[str, Any]:
  """The inverse of `windows`."""
  if not config.windows:
    return {'use_sliding_window': False}
  return {'use_sliding_window': True, 'sliding_window': max(config.windows),
          'layer_types': family.layer_types(config)}


FAMILY = family.Family(
    model_type='qwen2', architecture='Qwen2ForCausalLM',
    members='Qwen2 and Qwen2.5', required=frozenset({'num_key_value_heads'}),
    optional=OPTIONAL, fixed={'use_mrope': False}, kinds=KINDS,
    read=lambda get, where: {'qkv_bias': True, **windows(get, where)},
    write=write, gguf=gguf_form.GgufForm(architecture='qwen2'))
