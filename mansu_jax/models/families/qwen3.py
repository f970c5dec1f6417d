"""Qwen3: norms of queries and keys, and heads of a width of their own."""

from __future__ import annotations

from mansu_jax.models.families import family
from mansu_jax.models.families import gguf_form
from mansu_jax.models.families import qwen2

FAMILY = family.Family(
    model_type='qwen3', architecture='Qwen3ForCausalLM', members='Qwen3',
    required=frozenset({'num_key_value_heads'}),
    optional={**qwen2.OPTIONAL, 'head_dim': 128},
    fixed={'attention_bias': False}, kinds=qwen2.KINDS,
    read=lambda get, where: {'qk_norm': True, **qwen2.windows(get, where)},
    write=lambda config: {'attention_bias': False, **qwen2.write(config)},
    gguf=gguf_form.GgufForm(architecture='qwen3'))
