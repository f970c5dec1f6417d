"""Gemma 2: norms on both sides, soft caps, and windows in every other layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mansu_jax.models import config as config_lib
from mansu_jax.models.families import family
from mansu_jax.models.families import gguf_form

ACTIVATIONS = {'gelu_pytorch_tanh': 'gelu_tanh'}
FIELDS = {'hidden_act': 'hidden_activation'}

NAMES = family.NAMES | {
    'layers/attn_post_norm': 'model.layers.{}.post_attention_layernorm.weight',
    'layers/mlp_norm': 'model.layers.{}.pre_feedforward_layernorm.weight',
    'layers/mlp_post_norm':
        'model.layers.{}.post_feedforward_layernorm.weight'}
OPTIONAL = {
    'bos_token_id': 2, 'eos_token_id': 1, 'pad_token_id': 0, 'head_dim': 256,
    'tie_word_embeddings': True, 'query_pre_attn_scalar': 256,
    'sliding_window': 4096, 'layer_types': None,
    'attn_logit_softcapping': None, 'final_logit_softcapping': None}
FIXED = {'hidden_act': 'gelu_pytorch_tanh', 'attention_bias': False,
         'use_bidirectional_attention': False}
POSITIVE = frozenset({'query_pre_attn_scalar'})
KINDS = {'sliding_window': (int,), 'layer_types': (list,)} | dict.fromkeys(
    ('query_pre_attn_scalar', 'attn_logit_softcapping',
     'final_logit_softcapping'), (int, float))
# Transformers reads `sliding_window`; published files have both.
IGNORED = frozenset({'cache_implementation', 'sliding_window_size'})

GGUF_NAMES = gguf_form.NAMES | {
    'layers/attn_post_norm': 'blk.{}.post_attention_norm.weight',
    'layers/mlp_post_norm': 'blk.{}.post_ffw_norm.weight'}
GGUF_KEYS = gguf_form.ROTARY | {
    'attention.sliding_window', 'attention.sliding_window_pattern',
    'final_logit_softcapping'}


def read(
    get: Callable[[str], Any], where: str, full_every: int) -> dict[str, Any]:
  """Fields of a config whose layers read all tokens every so many layers."""
  return {
      'norm_offset': 1.0, 'post_norms': True,
      'embed_scale': get('hidden_size')**0.5,
      'query_scale': get('query_pre_attn_scalar')**-0.5,
      'attn_soft_cap': float(get('attn_logit_softcapping') or 0),
      'logits_soft_cap': float(get('final_logit_softcapping') or 0),
      'windows': family.layer_windows(
          get, get('sliding_window'),
          [(layer + 1) % full_every > 0
           for layer in range(get('num_hidden_layers'))], where)}


def write(config: config_lib.ModelConfig) -> dict[str, Any]:
  """The inverse of `read`."""
  return {
      'query_pre_attn_scalar': _whole(config.score_scale**-2),
      'attn_logit_softcapping': config.attn_soft_cap or None,
      'final_logit_softcapping': config.logits_soft_cap or None,
      'sliding_window': max(config.windows, default=None),
      'layer_types': family.layer_types(config)}


def gguf_scale(
    fields: family.Fields, layers_of_27b: int) -> dict[str, float | int]:
  """The scale of queries, which only the 27B model does not take from H.

  No key holds it; llama.cpp knows the 27B model by its number of layers.

  Args:
    fields: Of the model, by the names that most families have.
    layers_of_27b: Number of layers of that model.
  """
  wide = fields['num_hidden_layers'] == layers_of_27b
  return {'query_pre_attn_scalar': (
      fields['hidden_size'] // fields['num_attention_heads'] if wide
      else fields['head_dim'])}


def _whole(value: float) -> float | int:
  """An integer if the value is one but for rounding; transformers wants it."""
  return round(value) if abs(value - round(value)) < 1e-6 else value


FAMILY = family.Family(
    model_type='gemma2', architecture='Gemma2ForCausalLM', members='Gemma 2',
    activations=ACTIVATIONS, names=NAMES,
    required=frozenset({'num_key_value_heads'}),
    optional=OPTIONAL | {
        'max_position_embeddings': 8192, 'attn_logit_softcapping': 50.0,
        'final_logit_softcapping': 30.0},
    fields=FIELDS, fixed=FIXED, kinds=KINDS, positive=POSITIVE, ignored=IGNORED,
    read=lambda get, where: read(get, where, full_every=2), write=write,
    gguf=gguf_form.GgufForm(
        architecture='gemma2', names=GGUF_NAMES,
        keys=GGUF_KEYS | {'attn_logit_softcapping'},
        derive=lambda fields: gguf_scale(fields, layers_of_27b=46)))
