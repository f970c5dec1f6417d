"""A tiny model of each family, with all that sets its layers apart."""

from mansu_jax.models import families

_SMALL = {
    'vocab_size': 29, 'hidden_size': 16, 'intermediate_size': 24,
    'num_hidden_layers': 2, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'max_position_embeddings': 64}
_GEMMA = _SMALL | {
    'head_dim': 6, 'sliding_window': 3, 'query_pre_attn_scalar': 10}
FIELDS = {
    'llama': _SMALL | {'tie_word_embeddings': False},
    'mistral': _SMALL | {'sliding_window': 3},
    'qwen2': _SMALL | {
        'use_sliding_window': True, 'sliding_window': 3,
        'max_window_layers': 1},
    'qwen3': _SMALL | {'head_dim': 6},
    'gemma2': _GEMMA | {
        'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0},
    'gemma3_text': _GEMMA | {
        'sliding_window_pattern': 2, 'rope_parameters': {
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
            'full_attention': {'rope_type': 'linear', 'factor': 4.0,
                               'rope_theta': 1e5}}},
    'phi3': _SMALL | {
        'sliding_window': 3, 'hidden_size': 24, 'partial_rotary_factor': 0.67,
        'original_max_position_embeddings': 48, 'rope_parameters': {
            'rope_type': 'longrope', 'rope_theta': 100.0,
            'partial_rotary_factor': 0.67, 'short_factor': [1.0, 1.5],
            'long_factor': [4.0] * 2}},
    'gpt2': {
        'vocab_size': 29, 'n_embd': 16, 'n_inner': 24, 'n_layer': 2,
        'n_head': 4, 'n_positions': 64},
    'gpt_neox': {name: value for name, value in _SMALL.items()
                 if name != 'num_key_value_heads'} | {'rotary_pct': 0.5}}


def config(family):
  return families.from_hf(FIELDS[family] | {'model_type': family}, 'x')
