"""Llama 2 and 3, SmolLM2, TinyLlama."""

from __future__ import annotations

from mansu_jax.models.families import family
from mansu_jax.models.families import gguf_form

FAMILY = family.Family(
    model_type='llama', architecture='LlamaForCausalLM',
    members='Llama 2 and 3, SmolLM2, TinyLlama',
    optional={'bos_token_id': 1, 'eos_token_id': 2},
    fixed={'attention_bias': False, 'mlp_bias': False,
           'rope_interleaved': False},
    ignored=frozenset({'is_llama_config', 'pretraining_tp'}),
    write=lambda config: {'attention_bias': False, 'mlp_bias': False},
    gguf=gguf_form.GgufForm(architecture='llama', pairs_rotary=True))
