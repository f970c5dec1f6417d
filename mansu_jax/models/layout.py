"""Axes of each leaf, and the leaves that a 4-bit deployment quantizes."""

from __future__ import annotations

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.quant import layout as quant_layout

_BlockLayout = quant_layout.BlockLayout

# Axes of each quantized leaf in memory, and in torch's [out, in] order; L is a
# batch axis. Embedding, norms and lm_head are not quantized.
MATRICES = {
    'layers/attn/q': _BlockLayout(memory='LDNH', out='NH', inp='D'),
    'layers/attn/k': _BlockLayout(memory='LDKH', out='KH', inp='D'),
    'layers/attn/v': _BlockLayout(memory='LDKH', out='KH', inp='D'),
    'layers/attn/o': _BlockLayout(memory='LNHD', out='D', inp='NH'),
    'layers/mlp/gate': _BlockLayout(memory='LDF', out='F', inp='D'),
    'layers/mlp/up': _BlockLayout(memory='LDF', out='F', inp='D'),
    'layers/mlp/down': _BlockLayout(memory='LFD', out='D', inp='F'),
}


# Axes of each leaf in memory, in the letters of `sharding.AXIS_RULES`.
AXES = {'embed': 'VD', 'lm_head': 'VD', 'final_norm': 'D',
        'layers/attn_norm': 'LD', 'layers/mlp_norm': 'LD',
        'layers/attn/q_bias': 'LNH', 'layers/attn/k_bias': 'LKH',
        'layers/attn/v_bias': 'LKH', 'layers/attn/q_norm': 'LH',
        'layers/attn/k_norm': 'LH'} | {
            name: own.memory for name, own in MATRICES.items()}


def block_layout(config: config_lib.ModelConfig) -> types.PyTree:
  """A tree like the params: a `BlockLayout`, or None if not quantized."""
  absent = {'lm_head'} if config.tie_embeddings else set()
  if not config.qkv_bias:
    absent |= {f'layers/attn/{name}_bias' for name in 'qkv'}
  if not config.qk_norm:
    absent |= {f'layers/attn/{name}_norm' for name in 'qk'}
  return tree_paths.unflatten({
      name: MATRICES.get(name) for name in AXES if name not in absent})
