"""The model families, for tests: adding one adds to these tables."""

from mansu_jax.models import families
from tests.models import tiny

_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}
_GPT2 = {'model_type': 'gpt2', 'n_inner': None, 'n_positions': 64,
         'resid_pdrop': 0.0, 'embd_pdrop': 0.0, 'attn_pdrop': 0.0}
# Forms of each family: changes of the fields in `torch_models.make`.
CASES = (
    ('rope_dynamic', {'rope_parameters': {
        'rope_type': 'dynamic', 'factor': 4.0, 'rope_theta': 100.0}}),
    ('rope_yarn', {'head_dim': 16, 'rope_parameters': {
        'rope_type': 'yarn', 'factor': 4.0, 'rope_theta': 100.0,
        'original_max_position_embeddings': 32}}),
    ('rope_yarn_all', {'head_dim': 16, 'rope_parameters': {
        'rope_type': 'yarn', 'factor': 4.0, 'rope_theta': 100.0,
        'original_max_position_embeddings': 32, 'beta_fast': 4.0,
        'beta_slow': 0.5, 'mscale': 0.7, 'mscale_all_dim': 0.4,
        'truncate': False}}),
    ('full', {'num_key_value_heads': 4}),
    ('grouped', {}),
    ('single_head', {'num_key_value_heads': 1}),
    ('untied', {'tie_word_embeddings': False}),
    ('wide_heads', {'head_dim': 12}),
    ('rope_theta', {'rope_parameters': {
        'rope_type': 'default', 'rope_theta': 500.0}}),
    ('rope_linear', {'rope_parameters': {
        'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 100.0}}),
    ('rope_llama3', {'rope_parameters': _LLAMA3 | {'rope_theta': 5e5}}),
    ('mistral', {'model_type': 'mistral', 'sliding_window': 7}),
    ('mistral_whole', {'model_type': 'mistral', 'sliding_window': None}),
    ('qwen2', {'model_type': 'qwen2'}),
    ('qwen2_windows', {
        'model_type': 'qwen2', 'use_sliding_window': True,
        'sliding_window': 5, 'max_window_layers': 1}),
    ('qwen3', {'model_type': 'qwen3', 'head_dim': 12}),
    ('qwen3_untied', {
        'model_type': 'qwen3', 'num_key_value_heads': 1,
        'tie_word_embeddings': False}),
    ('gemma2', {
        'model_type': 'gemma2', 'head_dim': 12, 'sliding_window': 5,
        'query_pre_attn_scalar': 10, 'attn_logit_softcapping': 2.0,
        'final_logit_softcapping': 3.0}),
    ('gemma2_uncapped', {
        'model_type': 'gemma2', 'head_dim': 8, 'attn_logit_softcapping': None,
        'final_logit_softcapping': None}),
    ('gemma3', {
        'model_type': 'gemma3_text', 'head_dim': 12, 'sliding_window': 5,
        'num_hidden_layers': 3, 'sliding_window_pattern': 3,
        'query_pre_attn_scalar': 10, 'rope_parameters': {
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
            'full_attention': {'rope_type': 'linear', 'factor': 4.0,
                               'rope_theta': 1e5}}}),
    ('gemma3_whole', {
        'model_type': 'gemma3_text', 'head_dim': 8, 'sliding_window': 64,
        'num_key_value_heads': 4}),
    ('phi3', {'model_type': 'phi3', 'sliding_window': 7}),
    ('phi3_long', {
        'model_type': 'phi3', 'hidden_size': 64, 'partial_rotary_factor': 0.75,
        'original_max_position_embeddings': 48, 'rope_parameters': {
            'rope_type': 'longrope', 'rope_theta': 100.0,
            'partial_rotary_factor': 0.75,
            'short_factor': [1.0, 1.5, 2.0, 1.2, 3.0, 1.1],
            'long_factor': [4.0] * 6}}),
    ('gpt2', _GPT2),
    ('gpt2_untied', _GPT2 | {
        'tie_word_embeddings': False, 'n_inner': 72,
        'activation_function': 'gelu'}),
    ('gpt_neox', {
        'model_type': 'gpt_neox', 'hidden_size': 64, 'num_attention_heads': 2,
        'tie_word_embeddings': False}),
    ('gpt_neox_in_turn', {
        'model_type': 'gpt_neox', 'use_parallel_residual': False,
        'hidden_act': 'gelu_new', 'rope_parameters': {
            'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 100.0,
            'partial_rotary_factor': 0.5}}),
    ('starcoder2', {
        'model_type': 'starcoder2', 'head_dim': 12, 'sliding_window': 5,
        'tie_word_embeddings': False}),
    ('starcoder2_unbiased', {
        'model_type': 'starcoder2', 'use_bias': False, 'hidden_act': 'gelu'}))


_SMALL = {
    'vocab_size': 29, 'hidden_size': 16, 'intermediate_size': 24,
    'num_hidden_layers': 2, 'num_attention_heads': 4,
    'num_key_value_heads': 2, 'max_position_embeddings': 64}
_SMALL_GEMMA = _SMALL | {
    'head_dim': 6, 'sliding_window': 3, 'query_pre_attn_scalar': 10}
# Fields of a tiny model of each family, with all that sets its layers apart.
FIELDS = {
    'llama': _SMALL | {'tie_word_embeddings': False},
    'mistral': _SMALL | {'sliding_window': 3},
    'qwen2': _SMALL | {
        'use_sliding_window': True, 'sliding_window': 3,
        'max_window_layers': 1},
    'qwen3': _SMALL | {'head_dim': 6},
    'gemma2': _SMALL_GEMMA | {
        'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 3.0},
    'gemma3_text': _SMALL_GEMMA | {
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
                 if name != 'num_key_value_heads'} | {'rotary_pct': 0.5},
    'starcoder2': _SMALL | {'sliding_window': 3}}


# Fields that published files have besides, without meaning for the computation.
PUBLISHED = (
    ('qwen2', {'use_mrope': False, 'num_key_value_heads': 2}),  # Qwen2.5.
    ('gemma2', {'num_key_value_heads': 2, 'sliding_window_size': 4096}),
    ('gpt_neox', {'hidden_act': 'gelu_fast', 'hidden_dropout_prob': 0.1,
                  'attention_probs_dropout_prob': 0.1}),  # GPT-NeoX-20B.
    ('starcoder2', {'num_key_value_heads': 1, 'mlp_type': 'default',
                    'norm_type': 'layer_norm', 'norm_epsilon': 1e-5,
                    'rms_norm_eps': 1e-6}))


_GEMMA = tiny.POST_NORMS | {'embed_scale': 8.0, 'windows': (16, 16, 0)}
# What each family adds to the config of the model of `tests/tiny_job.py`.
TRAINED = {
    'llama': {}, 'mistral': {'windows': (16, 16, 16)},
    'qwen2': {'qkv_bias': True, 'windows': (0, 16, 16)},
    'qwen3': {'qk_norm': True},
    'gpt2': tiny.LAYER_NORM | {'positions': 'learned'},
    'gpt_neox': tiny.LAYER_NORM | {'parallel': True, 'd_rotary': 8},
    'phi3': {'d_rotary': 12, 'windows': (16, 16, 16)},
    'gemma2': _GEMMA | {'attn_soft_cap': 20.0, 'logits_soft_cap': 30.0},
    'gemma3_text': _GEMMA | {'qk_norm': True, 'window_rope_theta': 1000.0},
    'starcoder2': tiny.LAYER_NORM | {
        'num_kv_heads': 2, 'windows': (16, 16, 16)}}


def named(*names):
  """Named parameters of a test that runs once for each family."""
  return tuple((name, name) for name in names)


def family_of(changes):
  """The family of a case."""
  return changes.get('model_type', 'llama')


def of_each_family():
  """The cases with the most changes."""
  chosen = {}
  for name, changes in CASES:
    kind = family_of(changes)
    if len(changes) > len(chosen.get(kind, ('', {}))[1]):
      chosen[kind] = name, changes
  return list(chosen.values())


def config(name):
  """Config of the tiny model of `FIELDS`."""
  return families.from_hf(FIELDS[name] | {'model_type': name}, 'x')
