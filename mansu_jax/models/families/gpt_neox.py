"""GPT-NeoX and Pythia: attention and MLP side by side, layer norms."""

from __future__ import annotations

from mansu_jax.models.families import family
from mansu_jax.models.families import gpt2

_LAYER = 'gpt_neox.layers.{}.'


FAMILY = family.Family(
    model_type='gpt_neox', architecture='GPTNeoXForCausalLM',
    members='GPT-NeoX and Pythia',
    activations={'gelu': 'gelu', 'gelu_new': 'gelu_tanh',
                 'gelu_fast': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh'},
    names=family.with_biases({
        'final_norm': 'gpt_neox.final_layer_norm',
        'layers/attn_norm': f'{_LAYER}input_layernorm',
        'layers/mlp_norm': f'{_LAYER}post_attention_layernorm',
        **dict.fromkeys(family.QKV, f'{_LAYER}attention.query_key_value'),
        'layers/attn/o': f'{_LAYER}attention.dense',
        'layers/mlp/up': f'{_LAYER}mlp.dense_h_to_4h',
        'layers/mlp/down': f'{_LAYER}mlp.dense_4h_to_h'}) | {
            'embed': 'gpt_neox.embed_in.weight',
            'lm_head': 'embed_out.weight'},
    by_head=True, prefix='gpt_neox.', ignored_tensors=(
        '.attention.bias', '.attention.masked_bias',
        '.attention.rotary_emb.inv_freq'),
    fields={'rms_norm_eps': 'layer_norm_eps', 'rope_theta': 'rotary_emb_base',
            'partial_rotary_factor': 'rotary_pct'},
    without=frozenset({'head_dim', 'num_key_value_heads'}),
    optional={
        'layer_norm_eps': 1e-5, 'rotary_pct': 0.25, 'bos_token_id': 0,
        'eos_token_id': 2, 'use_parallel_residual': True},
    fixed={'attention_bias': True},
    kinds={'use_parallel_residual': (bool,)},
    ignored=frozenset({
        'attention_probs_dropout_prob', 'classifier_dropout', 'hidden_dropout',
        'hidden_dropout_prob'}),
    read=lambda get, where: gpt2.LAYERS | {
        'parallel': get('use_parallel_residual')},
    write=lambda config: {'use_parallel_residual': config.parallel},
    partly_rotary=True)
