"""Converts tiny Hugging Face directories as convert_hf_to_gguf.py does.

Tensor names come from the maps of the `gguf` package, metadata from the fields
of `config.json`; neither from the tables under test.
"""

import math

import gguf
import numpy as np

from mansu_jax.models import families
from mansu_jax.models.io import hf_files
from mansu_jax.models.io import hf_io
from tests.models import tiny

_COMMON = {
    'vocab_size': 96, 'hidden_size': 32, 'intermediate_size': 48,
    'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2,
    'max_position_embeddings': 64, 'bos_token_id': None, 'eos_token_id': None,
    'pad_token_id': None}
_GEMMA = {'head_dim': 12, 'query_pre_attn_scalar': 12, 'num_hidden_layers': 3}
# (name, fields of `config.json`).
CASES = (
    ('llama', {'model_type': 'llama', 'rope_theta': 500.0}),
    ('llama_untied', {
        'model_type': 'llama', 'head_dim': 12, 'rms_norm_eps': 1e-5,
        'tie_word_embeddings': False, 'rope_scaling': {
            'rope_type': 'linear', 'factor': 4.0}}),
    ('qwen2', {'model_type': 'qwen2', 'rms_norm_eps': 1e-6}),
    ('qwen2_yarn', {
        'model_type': 'qwen2', 'head_dim': 16, 'rope_theta': 100.0,
        'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0,
                         'original_max_position_embeddings': 32}}),
    ('qwen3', {'model_type': 'qwen3', 'head_dim': 12,
               'tie_word_embeddings': False}),
    ('gemma2', _GEMMA | {
        'model_type': 'gemma2', 'sliding_window': 5,
        'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0}),
    ('gemma3', _GEMMA | {
        'model_type': 'gemma3_text', 'sliding_window': 5,
        'num_hidden_layers': 7, 'rope_theta': 1e6, 'rope_scaling': {
            'rope_type': 'linear', 'factor': 8.0}}),
    ('phi3', {'model_type': 'phi3', 'sliding_window': 7,
              'tie_word_embeddings': False}),
    ('phi3_long', {
        'model_type': 'phi3', 'hidden_size': 64, 'partial_rotary_factor': 0.75,
        'original_max_position_embeddings': 48, 'rope_theta': 100.0,
        'rope_scaling': {
            'rope_type': 'longrope', 'long_factor': [4.0] * 6,
            'short_factor': [1.0, 1.5, 2.0, 1.2, 3.0, 1.1]}}),
    ('gpt2', {'model_type': 'gpt2', 'n_embd': 32, 'n_layer': 2, 'n_head': 4,
              'n_positions': 64, 'vocab_size': 96, 'bos_token_id': None,
              'eos_token_id': None}))


def make(folder, fields, seed=0):
  """Writes a random model with these fields; returns its config and params."""
  gpt2 = fields['model_type'] == 'gpt2'
  cfg = families.from_hf(fields if gpt2 else _COMMON | fields, 'case')
  weights = tiny.params(cfg, seed=seed)
  for part in (weights, weights['layers'], weights['layers']['attn']):
    for name in part:  # Such that 1 + w is exact in float32.
      if name.endswith('_norm'):
        part[name] = (part[name] * 64).round() / 64 - cfg.norm_offset
  hf_io.write(folder, cfg, weights, None)
  return cfg, weights


def architecture(fields):
  return fields['model_type'].removesuffix('_text')


def tensors(folder, fields):
  """{GGUF name: rows}, as the converter makes them."""
  arch = architecture(fields)
  names = gguf.get_tensor_name_map(next(
      key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch), 9)
  found = {}
  with hf_files.open_file(folder / 'model.safetensors') as handle:
    for name in handle.keys():
      rows = handle.get_tensor(name)
      if arch == 'llama' and 'q_proj' in name:
        rows = tiny.pair_rotary(rows, 4)
      elif arch == 'llama' and 'k_proj' in name:
        rows = tiny.pair_rotary(rows, 2)
      elif arch.startswith('gemma') and name.endswith('norm.weight'):
        rows = rows + np.float32(1)
      elif arch == 'gpt2' and name.endswith((
          'c_attn.weight', 'c_proj.weight', 'c_fc.weight')):
        rows = rows.T
      target = names.get_name(name, ('.weight', '.bias'))
      found[target] = np.ascontiguousarray(rows)
  scaling = fields.get('rope_scaling', {})
  for name in ('long', 'short'):
    if f'{name}_factor' in scaling:
      found[f'rope_factors_{name}.weight'] = np.float32(
          scaling[f'{name}_factor'])
  return found


def add_config(writer, cfg, fields):
  """Metadata as the converter of the architecture writes it."""
  arch, scaling = architecture(fields), fields.get('rope_scaling', {})
  writer.add_block_count(cfg.num_layers)
  writer.add_embedding_length(cfg.d_model)
  writer.add_feed_forward_length(cfg.d_ff)
  writer.add_head_count(cfg.num_heads)
  writer.add_vocab_size(cfg.vocab_size)
  longest = _COMMON['max_position_embeddings']
  writer.add_context_length(longest)
  if arch == 'gpt2':
    writer.add_layer_norm_eps(cfg.norm_eps)
    return
  writer.add_head_count_kv(cfg.num_kv_heads)
  writer.add_layer_norm_rms_eps(cfg.norm_eps)
  writer.add_rope_freq_base(cfg.rope_theta)
  if 'head_dim' in fields:
    writer.add_key_length(cfg.d_head)
    writer.add_value_length(cfg.d_head)
  if scaling:
    writer.add_rope_scaling_type(gguf.RopeScalingType(scaling['rope_type']))
  if 'factor' in scaling:
    writer.add_rope_scaling_factor(scaling['factor'])
  trained = scaling.get('original_max_position_embeddings')
  if arch == 'phi3':
    trained = fields.get('original_max_position_embeddings', longest)
    writer.add_rope_dimension_count(cfg.d_rotary or cfg.d_head)
    writer.add_sliding_window(fields.get('sliding_window') or 0)
  if trained:
    writer.add_rope_scaling_orig_ctx_len(trained)
  if 'long_factor' in scaling:
    writer.add_rope_scaling_attn_factors(
        math.sqrt(1 + math.log(longest / trained) / math.log(trained)))
  if arch.startswith('gemma'):
    writer.add_sliding_window(fields['sliding_window'])
  if arch == 'gemma2':
    writer.add_attn_logit_softcapping(fields['attn_logit_softcapping'])
    writer.add_final_logit_softcapping(fields['final_logit_softcapping'])


def no_vocabulary(writer):
  writer.add_tokenizer_model('none')


def convert(folder, path, cfg, fields, add=no_vocabulary, raw=()):
  """Converts a directory of `make`."""
  def both(writer):
    add_config(writer, cfg, fields)
    add(writer)

  tiny.write_gguf_of(
      path, architecture(fields), both, tensors(folder, fields), raw)
