"""GPT-2: learned positions, layer norms, and an MLP without a gate."""

from __future__ import annotations

from mansu_jax.models.families import family
from mansu_jax.models.families import gguf_form

# What the layers of the GPT models compute.
LAYERS = {'norm': 'layer', 'gated': False, 'qkv_bias': True, 'out_bias': True}
_LAYER = 'transformer.h.{}.'

FAMILY = family.Family(
    model_type='gpt2', architecture='GPT2LMHeadModel', members='GPT-2',
    activations={'gelu_new': 'gelu_tanh', 'gelu_pytorch_tanh': 'gelu_tanh',
                 'gelu': 'gelu'},
    names=family.with_biases({
        'final_norm': 'transformer.ln_f',
        'layers/attn_norm': f'{_LAYER}ln_1',
        'layers/mlp_norm': f'{_LAYER}ln_2',
        **dict.fromkeys(family.QKV, f'{_LAYER}attn.c_attn'),
        'layers/attn/o': f'{_LAYER}attn.c_proj',
        'layers/mlp/up': f'{_LAYER}mlp.c_fc',
        'layers/mlp/down': f'{_LAYER}mlp.c_proj'}) | {
            'embed': 'transformer.wte.weight',
            'positions': 'transformer.wpe.weight',
            'lm_head': 'lm_head.weight'},
    transposed=True, prefix='transformer.',
    ignored_tensors=('.attn.bias', '.attn.masked_bias'),
    fields={
        'hidden_size': 'n_embd', 'num_hidden_layers': 'n_layer',
        'num_attention_heads': 'n_head', 'intermediate_size': 'n_inner',
        'max_position_embeddings': 'n_positions',
        'rms_norm_eps': 'layer_norm_epsilon',
        'hidden_act': 'activation_function'},
    without=frozenset({
        'head_dim', 'num_key_value_heads', 'rope_theta', 'rope_scaling',
        'rope_parameters', 'partial_rotary_factor'}),
    optional={
        'n_inner': None, 'n_positions': 1024, 'layer_norm_epsilon': 1e-5,
        'bos_token_id': 50256, 'eos_token_id': 50256,
        'tie_word_embeddings': True},
    fixed={'scale_attn_weights': True, 'reorder_and_upcast_attn': False,
           'scale_attn_by_inverse_layer_idx': False},
    ignored=frozenset({
        'attn_pdrop', 'embd_pdrop', 'feed_forward_length', 'n_ctx',
        'n_special', 'output_past',
        'predict_special_tokens', 'resid_pdrop', 'summary_activation',
        'summary_first_dropout', 'summary_proj_to_labels', 'summary_type',
        'summary_use_proj'}),
    read=lambda get, where: LAYERS | {'positions': 'learned'},
    gguf=gguf_form.GgufForm(
        architecture='gpt2', names=family.with_biases({
            'final_norm': 'output_norm',
            'layers/attn_norm': 'blk.{}.attn_norm',
            'layers/mlp_norm': 'blk.{}.ffn_norm',
            **dict.fromkeys(family.QKV, 'blk.{}.attn_qkv'),
            'layers/attn/o': 'blk.{}.attn_output',
            'layers/mlp/up': 'blk.{}.ffn_up',
            'layers/mlp/down': 'blk.{}.ffn_down'}) | {
                'embed': 'token_embd.weight',
                'positions': 'position_embd.weight',
                'lm_head': 'output.weight'},
        norm_eps='attention.layer_norm_epsilon', keys=frozenset()))
