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


def make(seed=0, **changes):
  own = families.FAMILIES[changes.get('model_type', 'llama')]
  fields = {
      'vocab_size': 96, 'hidden_size': 32, 'intermediate_size': 48,
      'num_hidden_layers': 2, 'num_attention_heads': 4,
      'num_key_value_heads': 2, 'max_position_embeddings': 128,
      'initializer_range': 0.2, 'tie_word_embeddings': True,
      'bos_token_id': 1, 'eos_token_id': 2, 'pad_token_id': 0}
  fields = {own.fields.get(name, name): value for name, value in fields.items()
            if name not in own.without} | changes
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
