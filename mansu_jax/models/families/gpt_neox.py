"""GPT-NeoX and Pythia: attention and MLP side by side, layer norms."""

from __future__ import annotations

from mansu_jax.models.families import family

_LAYER = 'gpt_neox.layers.{}.'
_QKV = f'{_LAYER}attention.query_key_value'


FAMILY = family.Family(
    model_type='gpt_neox', architecture='GPTNeoXForCausalLM',
    members='GPT-NeoX and Pythia',
    activations={'gelu': 'gelu', 'gelu_new': 'gelu_tanh',
                 'gelu_pytorch_tanh': 'gelu_tanh'},
    names={
        'embed': 'gpt_neox.embed_in.weight',
        'lm_head': 'embed_out.weight',
        'final_norm': 'gpt_neox.final_layer_norm.weight',
        'final_norm_bias': 'gpt_neox.final_layer_norm.bias',
        'layers/attn_norm': f'{_LAYER}input_layernorm.weight',
        'layers/attn_norm_bias': f'{_LAYER}input_layernorm.bias',
        'layers/mlp_norm': f'{_LAYER}post_attention_layernorm.weight',
        'layers/mlp_norm_bias': f'{_LAYER}post_attention_layernorm.bias',
        **dict.fromkeys(('layers/attn/q', 'layers/attn/k', 'layers/attn/v'),
                        f'{_QKV}.weight'),
        **dict.fromkeys(('layers/attn/q_bias', 'layers/attn/k_bias',
                         'layers/attn/v_bias'), f'{_QKV}.bias'),
        'layers/attn/o': f'{_LAYER}attention.dense.weight',
        'layers/attn/o_bias': f'{_LAYER}attention.dense.bias',
        'layers/mlp/up': f'{_LAYER}mlp.dense_h_to_4h.weight',
        'layers/mlp/up_bias': f'{_LAYER}mlp.dense_h_to_4h.bias',
        'layers/mlp/down': f'{_LAYER}mlp.dense_4h_to_h.weight',
        'layers/mlp/down_bias': f'{_LAYER}mlp.dense_4h_to_h.bias'},
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
    ignored=frozenset({'hidden_dropout', 'classifier_dropout'}),
    read=lambda get, where: {
        'norm': 'layer', 'gated': False, 'qkv_bias': True, 'out_bias': True,
        'parallel': get('use_parallel_residual')},
    write=lambda config: {'use_parallel_residual': config.parallel},
    partly_rotary=True)
