"""Process of `attribution_against` that runs EAP-IG by Hanna et al.

It runs in an environment with `eap` and `transformer_lens`. Two patches let it
run on a CPU and on token ids: the original allocates its scores on 'cuda', and
takes strings, to which it prepends a BOS token. The original also computes
gradients of weights, which it never uses; with `weight_gradients` false, the
backward passes skip them.
"""

from __future__ import annotations

from collections.abc import Callable
import os
from typing import Any
from unittest import mock

from eap import attribute
from eap import graph as graph_lib
import numpy as np
import torch
import transformer_lens
from transformer_lens.pretrained import weight_conversions
import transformers

from experiments.bench import attribution_process


def _model(path: str) -> transformer_lens.HookedTransformer:
  """Loads a Llama from a Hugging Face directory without folding weights."""
  source = transformers.AutoModelForCausalLM.from_pretrained(
      path, dtype=torch.float32)
  c = source.config
  config = transformer_lens.HookedTransformerConfig(
      d_model=c.hidden_size, d_head=c.hidden_size // c.num_attention_heads,
      n_heads=c.num_attention_heads, n_key_value_heads=c.num_key_value_heads,
      d_mlp=c.intermediate_size, n_layers=c.num_hidden_layers, n_ctx=64,
      eps=c.rms_norm_eps, d_vocab=c.vocab_size, act_fn=c.hidden_act,
      normalization_type='RMS', positional_embedding_type='rotary',
      rotary_adjacent_pairs=False, rotary_base=int(c.rope_theta),
      rotary_dim=c.hidden_size // c.num_attention_heads, final_rms=True,
      gated_mlp=True, original_architecture='LlamaForCausalLM', device='cpu',
      use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
      ungroup_grouped_query_attention=True)
  model = transformer_lens.HookedTransformer(config)
  model.load_and_process_state_dict(
      weight_conversions.convert_llama_weights(source, config),
      fold_ln=False, center_writing_weights=False, center_unembed=False,
      fold_value_biases=False)
  return model


def _prepare(job: dict[str, Any]) -> Callable[[], np.ndarray]:
  torch.set_num_threads(len(os.sched_getaffinity(0)))
  model = _model(job['model'])
  model.requires_grad_(job['weight_gradients'])
  job['loaded']()
  graph = graph_lib.Graph.from_model(model)
  clean, corrupt, answer, other = (
      torch.tensor(column) for column in zip(*job['pairs']))
  rows = torch.arange(len(clean))

  def loss(logits, clean_logits, lengths, labels):
    del clean_logits, lengths, labels
    last = logits[:, -1]
    return (last[rows, other] - last[rows, answer]).sum()

  def tokens_plus(model, ids):
    del model
    mask = torch.ones_like(ids)
    return ids, mask, mask.sum(1), ids.shape[1]

  zeros = torch.zeros
  on_cpu = lambda *args, device=None, **kwargs: zeros(*args, **kwargs)

  def run():
    model.zero_grad()
    with mock.patch.object(attribute, 'tokenize_plus', tokens_plus), (
        mock.patch.object(torch, 'zeros', on_cpu)):
      return attribute.get_scores_eap_ig(
          model, graph, [(clean, corrupt, None)], loss, steps=job['steps'],
          quiet=True).numpy()

  return run


if __name__ == '__main__':
  attribution_process.serve(_prepare)
