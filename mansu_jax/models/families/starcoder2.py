"""StarCoder2: layer norms, windows, and an MLP without a gate."""

from __future__ import annotations

from mansu_jax.models.families import family
from mansu_jax.models.families import gpt2
from mansu_jax.models.families import mistral

_LAYER = 'model.layers.{}.'

FAMILY = family.Family(
    model_type='starcoder2', architecture='Starcoder2ForCausalLM',
    members='StarCoder2',
    activations={'gelu_pytorch_tanh': 'gelu_tanh', 'gelu': 'gelu'},
    names=family.NAMES | family.with_biases({
        'final_norm': 'model.norm',
        'layers/attn_norm': f'{_LAYER}input_layernorm',
        'layers/mlp_norm': f'{_LAYER}post_attention_layernorm',
        'layers/attn/o': f'{_LAYER}self_attn.o_proj',
        'layers/mlp/up': f'{_LAYER}mlp.c_fc',
        'layers/mlp/down': f'{_LAYER}mlp.c_proj'}),
    fields={'rms_norm_eps': 'norm_epsilon'},
    required=frozenset({'num_key_value_heads'}),
    optional={
        'norm_epsilon': 1e-5, 'max_position_embeddings': 4096,
        'bos_token_id': 50256, 'eos_token_id': 50256,
        'tie_word_embeddings': True, 'sliding_window': None, 'use_bias': True},
    fixed={'mlp_type': 'default', 'norm_type': 'layer_norm'},
    kinds={'sliding_window': (int,), 'use_bias': (bool,)},
    # The file of the 15B model has `rms_norm_eps`, which nothing reads.
    ignored=frozenset({
        'embedding_dropout', 'residual_dropout', 'rms_norm_eps'}),
    read=lambda get, where: gpt2.LAYERS | mistral.FAMILY.read(
        get, where) | dict.fromkeys(('qkv_bias', 'out_bias'), get('use_bias')),
    write=lambda config: mistral.FAMILY.write(config) | {
        'use_bias': config.out_bias})
