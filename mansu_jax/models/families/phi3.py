"""Phi 3, 3.5 and 4: Llama with fused matrices."""

from __future__ import annotations

from typing import Any

from mansu_jax.models import config as config_lib
from mansu_jax.models.families import family
from mansu_jax.models.families import gguf_form
from mansu_jax.models.families import mistral
from mansu_jax.models.families import rope
from mansu_jax.runtime import messages

_QKV = 'model.layers.{}.self_attn.qkv_proj.weight'
_GATE_UP = 'model.layers.{}.mlp.gate_up_proj.weight'
_TRAINED = 'original_max_position_embeddings'


def _normalize(fields: family.Fields, where: str) -> family.Fields:
  """Names the scaling as newer files do, with its context length."""
  name = next((name for name in ('rope_parameters', 'rope_scaling')
               if isinstance(fields.get(name), dict)), None)
  if name is None:
    return fields
  scaling = dict(fields[name])
  family.check_kinds(scaling, rope.KINDS, f'{where}, {name}')
  kinds = {scaling.get('rope_type'), scaling.get('type')}
  if kinds & {'su', 'yarn', 'longrope'}:
    scaling.pop('type', None)
    scaling['rope_type'] = 'longrope'
    trained = fields.get(_TRAINED, scaling.get(_TRAINED, 4096))
    if scaling.setdefault(_TRAINED, trained) != trained:
      raise ValueError(
          f'{where} gives {_TRAINED} as {messages.shorten(trained)} and, in'
          f' {name}, {messages.shorten(scaling[_TRAINED])}; wanted one value.'
          ' Correct either field.')
  return {**fields, name: scaling}


def _write(config: config_lib.ModelConfig) -> dict[str, Any]:
  scaling = config.rope_scaling
  return mistral.FAMILY.write(config) | {
      _TRAINED: config.max_position if scaling is None
                else scaling.original_max_position}


FAMILY = family.Family(
    model_type='phi3', architecture='Phi3ForCausalLM',
    members='Phi 3, 3.5 and 4',
    names=family.NAMES | dict.fromkeys(family.QKV, _QKV) | {
        'layers/mlp/gate': _GATE_UP, 'layers/mlp/up': _GATE_UP},
    optional={
        'bos_token_id': 1, 'eos_token_id': 32000, 'pad_token_id': 32000,
        'rms_norm_eps': 1e-5, 'max_position_embeddings': 4096, _TRAINED: 4096,
        'sliding_window': None},
    fixed={'attention_bias': False, 'mlp_bias': False, 'lm_head_bias': False,
           'full_attn_mod': 1},
    kinds={'sliding_window': (int,), _TRAINED: (int,)},
    ignored=frozenset({
        'auto_map', 'embd_pdrop', 'interpolate_factor', 'resid_pdrop'}),
    read=mistral.FAMILY.read, write=_write, partly_rotary=True,
    normalize=_normalize, gguf=gguf_form.GgufForm(
        architecture='phi3', names=gguf_form.NAMES | dict.fromkeys(
            family.QKV, 'blk.{}.attn_qkv.weight') | {
                'layers/mlp/gate': gguf_form.NAMES['layers/mlp/up']},
        keys=gguf_form.ROTARY | {'attention.sliding_window'}))
