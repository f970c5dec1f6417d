"""Tiny models of each family in torch and here, and how far they differ."""

import jax
import numpy as np
import transformers

from mansu_jax.models import assemble
from mansu_jax.models import families
from mansu_jax.models.io import loading
from mansu_jax.unlearn import losses
from tests.models import tiny

try:
  import torch
except ImportError:
  torch = None

_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}
_GPT2 = {'model_type': 'gpt2', 'n_embd': 32, 'n_layer': 2, 'n_head': 4,
         'n_positions': 64, 'resid_pdrop': 0.0, 'embd_pdrop': 0.0,
         'attn_pdrop': 0.0}
# Changes of the config, by family and form.
CASES = (
    ('rope_dynamic', {'rope_parameters': {
        'rope_type': 'dynamic', 'factor': 4.0, 'rope_theta': 100.0}}),
    ('rope_yarn', {'head_dim': 16, 'rope_parameters': {
        'rope_type': 'yarn', 'factor': 4.0, 'rope_theta': 100.0,
        'original_max_position_embeddings': 32}}),
    ('rope_yarn_all', {'head_dim': 16, 'rope_parameters': {
        'rope_type': 'yarn', 'factor': 4.0, 'rope_theta': 100.0,
        'original_max_position_embeddings': 32, 'beta_fast': 4.0,
        'beta_slow': 0.5, 'mscale': 0.7, 'mscale_all_dim': 0.4,
        'truncate': False}}),
    ('full', {'num_key_value_heads': 4}),
    ('grouped', {}),
    ('single_head', {'num_key_value_heads': 1}),
    ('untied', {'tie_word_embeddings': False}),
    ('wide_heads', {'head_dim': 12}),
    ('rope_theta', {'rope_parameters': {
        'rope_type': 'default', 'rope_theta': 500.0}}),
    ('rope_linear', {'rope_parameters': {
        'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 100.0}}),
    ('rope_llama3', {'rope_parameters': _LLAMA3 | {'rope_theta': 5e5}}),
    ('mistral', {'model_type': 'mistral', 'sliding_window': 7}),
    ('mistral_whole', {'model_type': 'mistral', 'sliding_window': None}),
    ('qwen2', {'model_type': 'qwen2'}),
    ('qwen2_windows', {
        'model_type': 'qwen2', 'use_sliding_window': True,
        'sliding_window': 5, 'max_window_layers': 1}),
    ('qwen3', {'model_type': 'qwen3', 'head_dim': 12}),
    ('gemma2', {
        'model_type': 'gemma2', 'head_dim': 12, 'sliding_window': 5,
        'query_pre_attn_scalar': 10, 'attn_logit_softcapping': 2.0,
        'final_logit_softcapping': 3.0}),
    ('gemma2_uncapped', {
        'model_type': 'gemma2', 'head_dim': 8, 'attn_logit_softcapping': None,
        'final_logit_softcapping': None}),
    ('gemma3', {
        'model_type': 'gemma3_text', 'head_dim': 12, 'sliding_window': 5,
        'num_hidden_layers': 3, 'sliding_window_pattern': 3,
        'query_pre_attn_scalar': 10, 'rope_parameters': {
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
            'full_attention': {'rope_type': 'linear', 'factor': 4.0,
                               'rope_theta': 1e5}}}),
    ('phi3', {'model_type': 'phi3', 'sliding_window': 7}),
    ('phi3_long', {
        'model_type': 'phi3', 'hidden_size': 64, 'partial_rotary_factor': 0.75,
        'original_max_position_embeddings': 48, 'rope_parameters': {
            'rope_type': 'longrope', 'rope_theta': 100.0,
            'partial_rotary_factor': 0.75,
            'short_factor': [1.0, 1.5, 2.0, 1.2, 3.0, 1.1],
            'long_factor': [4.0] * 6}}),
    ('gpt2', _GPT2),
    ('gpt2_untied', _GPT2 | {
        'tie_word_embeddings': False, 'n_inner': 72,
        'activation_function': 'gelu'}),
    ('gpt_neox', {
        'model_type': 'gpt_neox', 'hidden_size': 64, 'num_attention_heads': 2,
        'tie_word_embeddings': False}),
    ('gpt_neox_in_turn', {
        'model_type': 'gpt_neox', 'use_parallel_residual': False,
        'hidden_act': 'gelu_new', 'rope_parameters': {
            'rope_type': 'linear', 'factor': 2.0, 'rope_theta': 100.0,
            'partial_rotary_factor': 0.5}}))


def family(changes):
  """The family of a case."""
  return changes.get('model_type', 'llama')


def of_each_family():
  """The cases with the most changes."""
  chosen = {}
  for name, changes in CASES:
    kind = family(changes)
    if len(changes) > len(chosen.get(kind, ('', {}))[1]):
      chosen[kind] = name, changes
  return list(chosen.values())


def make(seed=0, **changes):
  fields = {
      'vocab_size': 96, 'hidden_size': 32, 'intermediate_size': 48,
      'num_hidden_layers': 2, 'num_attention_heads': 4,
      'num_key_value_heads': 2, 'max_position_embeddings': 128,
      'initializer_range': 0.2, 'tie_word_embeddings': True,
      'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 0} | changes
  if changes.get('model_type') == 'gpt_neox':
    del fields['num_key_value_heads']  # It lacks the field.
  if changes.get('model_type') == 'gpt2':  # It names these otherwise.
    for name in ('hidden_size', 'intermediate_size', 'num_hidden_layers',
                 'num_attention_heads', 'num_key_value_heads',
                 'max_position_embeddings'):
      del fields[name]
  torch.manual_seed(seed)
  config = transformers.AutoConfig.for_model(
      fields.pop('model_type', 'llama'), **fields)
  model = transformers.AutoModelForCausalLM.from_config(config)
  for name, weight in model.named_parameters():
    if 'norm' in name or 'ln_' in name and 'weight' in name:
      torch.nn.init.normal_(weight, 1.0, 0.2)
    if 'bias' in name:
      torch.nn.init.normal_(weight, 0.0, 1.0)
  return model.eval()


def both(folder, length=40, **changes):
  """A torch model, the same in our decoder, and token ids [2, length]."""
  torch_model = make(**changes)
  torch_model.save_pretrained(folder)
  return torch_model, loading.load(folder), ids(length)


def ids(length=40):
  """Token ids but 0, the padding token, to which torch gives no gradient."""
  return np.random.default_rng(3).integers(1, 96, (2, length), dtype=np.int32)


def logits(model, rows, **inputs):
  """Logits of a torch model, float32."""
  with torch.no_grad():
    return model(
        torch.from_numpy(rows).long(), **inputs).logits.float().numpy()


def logits_error(torch_model, model, rows):
  """The largest difference of the logits."""
  return float(np.abs(tiny.logits(model.config, model.params, rows)
                      - logits(torch_model, rows)).max())


def padding_error(side, torch_model, model, rows):
  """The largest difference of the logits where a row is padded on a side.

  It is compared with torch's logits, and with ours of the row alone.
  """
  size = rows.shape[1]
  real = np.arange(size) < np.array([size, size - 4])[:, None]
  if side == 'left':
    real = real[:, ::-1]
  positions = np.maximum(np.cumsum(real, 1) - 1, 0)
  want = logits(
      torch_model, rows, attention_mask=torch.from_numpy(real.astype(int)),
      position_ids=torch.from_numpy(positions))
  mask = np.tril(np.ones((size, size), bool)) & real[:, None]
  got = tiny.logits(model.config, model.params, rows, positions=positions,
                    attention_mask=mask)
  alone = tiny.logits(model.config, model.params, rows[1:][:, real[1]])
  return float(max(np.abs(got[real] - want[real]).max(),
                   np.abs(got[1][real[1]] - alone[0]).max()))


def bfloat16_errors(torch_model, model, rows):
  """Root mean square errors of bfloat16 logits, as shares of their spread.

  Ours and torch's; both are compared with torch's float32 logits. The torch
  model becomes bfloat16.
  """
  want = logits(torch_model, rows)
  return tuple(
      float(np.sqrt(np.mean((np.float32(got) - want)**2)) / want.std())
      for got in (
          tiny.logits(model.config, model.params, rows, dtype='bfloat16'),
          logits(torch_model.bfloat16(), rows)))


def gradient_errors(torch_model, model, rows):
  """For each tensor, the largest difference of the loss's gradients.

  It is a share of the tensor's largest gradient, or absolute where that is
  below 1.
  """
  torch_model.train()
  labels = torch.from_numpy(rows).long()
  torch_model(labels, labels=labels).loss.backward()
  torch_model.eval()

  def loss(params):
    found = tiny.logits(model.config, params, rows[:, :-1])
    return losses.token_nll(found, rows[:, 1:]).mean()

  got = {t.name: assemble.to_torch(layers, t)
         for t, layers in assemble.layers(
             model.config, families.naming(model.config),
             jax.grad(loss)(model.params))}
  weights = dict(torch_model.named_parameters())
  if not model.config.tie_embeddings:  # The file may name it otherwise.
    weights[families.naming(model.config).names['lm_head']] = weights.pop(
        'lm_head.weight')
  return {
      name: float(np.abs(got[name] - weight.grad.numpy()).max()
                  / max(1, float(weight.grad.abs().max())))
      for name, weight in weights.items()}
