"""A family of decoders in `.gguf` files, as llama.cpp's converter writes them.

A family names its tensors and metadata keys here; `models/io/gguf_config.py`
turns the keys into the fields of a `config.json`, so that one reader checks
both. References: convert_hf_to_gguf.py, src/models/, gguf-py's constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from mansu_jax.models import assemble

# Leaf -> tensor name, with `{}` for the layer. Of most families.
NAMES = {
    'embed': 'token_embd.weight',
    'final_norm': 'output_norm.weight',
    'lm_head': 'output.weight',
    'layers/attn_norm': 'blk.{}.attn_norm.weight',
    'layers/mlp_norm': 'blk.{}.ffn_norm.weight',
    'layers/attn/q': 'blk.{}.attn_q.weight',
    'layers/attn/k': 'blk.{}.attn_k.weight',
    'layers/attn/v': 'blk.{}.attn_v.weight',
    'layers/attn/o': 'blk.{}.attn_output.weight',
    **{f'layers/attn/{name}_bias': f'blk.{{}}.attn_{name}.bias'
       for name in 'qkv'},
    **{f'layers/attn/{name}_norm': f'blk.{{}}.attn_{name}_norm.weight'
       for name in 'qk'},
    'layers/mlp/gate': 'blk.{}.ffn_gate.weight',
    'layers/mlp/up': 'blk.{}.ffn_up.weight',
    'layers/mlp/down': 'blk.{}.ffn_down.weight',
}

REQUIRED = frozenset({
    'block_count', 'context_length', 'embedding_length',
    'feed_forward_length', 'attention.head_count'})
OPTIONAL = frozenset({
    'attention.head_count_kv', 'attention.key_length',
    'attention.value_length', 'vocab_size'})
ROTARY = frozenset({
    'rope.dimension_count', 'rope.freq_base', 'rope.scaling.type',
    'rope.scaling.factor', 'rope.scaling.original_context_length',
    'rope.scaling.attn_factor', 'rope.scaling.yarn_beta_fast',
    'rope.scaling.yarn_beta_slow'})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GgufForm:
  """How one family of models writes its `.gguf` files.

  Norm weights are stored with the family's offset added, 1 + w in Gemma.

  Attributes:
    architecture: Value of `general.architecture`, and prefix of its keys.
    names: Leaf -> tensor name; leaves of one name share a tensor.
    pairs_rotary: Whether the rows of W_Q and W_K are reordered so that rotary
      pairs are adjacent.
    norm_eps: Key of the constant added in each norm.
    keys: Its keys besides those of all families.
    derive: `fields of a config.json -> further fields`, which no key gives.
  """

  architecture: str
  names: Mapping[str, str] = dataclasses.field(default_factory=lambda: NAMES)
  pairs_rotary: bool = False
  norm_eps: str = 'attention.layer_norm_rms_epsilon'
  keys: frozenset[str] = ROTARY
  derive: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda fields: {}

  @property
  def naming(self) -> assemble.Naming:
    """How its files hold the leaves."""
    return assemble.Naming(self.names)

  @property
  def required(self) -> frozenset[str]:
    """Keys that a file must have."""
    return REQUIRED | {self.norm_eps}

  @property
  def optional(self) -> frozenset[str]:
    """Keys that a file may have."""
    return OPTIONAL | self.keys
