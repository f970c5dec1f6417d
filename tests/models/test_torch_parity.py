"""Logits equal torch transformers' in both directions, on tiny models."""

import importlib.util

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax import quant
from mansu_jax.deployment import bnb
from mansu_jax.models import assemble
from mansu_jax.models import families
from mansu_jax.models import layout
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.unlearn import losses
from tests.models import tiny

try:
  import torch
  import transformers
except ImportError:
  torch = None

_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}


_GPT2 = {'model_type': 'gpt2', 'n_embd': 32, 'n_layer': 2, 'n_head': 4,
         'n_positions': 64, 'resid_pdrop': 0.0, 'embd_pdrop': 0.0,
         'attn_pdrop': 0.0}
# Changes of the config, by family and form.
_CASES = (
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


def _of_each_family():
  """The cases with the most changes."""
  chosen = {}
  for name, changes in _CASES:
    kind = changes.get('model_type', 'llama')
    if len(changes) > len(chosen.get(kind, ('', {}))[1]):
      chosen[kind] = name, changes
  return chosen.values()


def _torch_model(seed=0, **changes):
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


def _both(test, length=40, **changes):
  """A torch model, the same in our decoder, and token ids."""
  path = tiny.temp_dir(test) / 'model'
  torch_model = _torch_model(**changes)
  torch_model.save_pretrained(path)
  return torch_model, loading.load(path), _ids(length)


def _torch_logits(model, ids, **inputs):
  with torch.no_grad():
    return model(
        torch.from_numpy(ids).long(), **inputs).logits.float().numpy()


def _ids(length=40):
  return np.random.default_rng(3).integers(0, 96, (2, length), dtype=np.int32)


@absltest.skipIf(torch is None, 'torch is not installed')
class TorchParityTest(parameterized.TestCase):

  @parameterized.named_parameters(*_CASES)
  def test_logits_load_and_round_trip(self, changes):
    torch_model, model, ids = _both(self, **changes)
    want = _torch_logits(torch_model, ids)
    got = tiny.logits(model.config, model.params, ids)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    self.assertGreater(want.std(), 0.3)

    copy = tiny.temp_dir(self) / 'copy'
    hf_io.write(copy, model.config, model.params, None)
    again = transformers.AutoModelForCausalLM.from_pretrained(copy)
    self.assertEqual(again.dtype, torch.float32)
    np.testing.assert_allclose(_torch_logits(again, ids), want, atol=1e-6)
    for name, weight in again.state_dict().items():
      self.assertTrue(torch.equal(weight, torch_model.state_dict()[name]))
    reloaded = loading.load(copy)
    self.assertEqual(reloaded.config, model.config)
    jax.tree.map(
        np.testing.assert_array_equal, reloaded.params, model.params)

  @parameterized.named_parameters(*(
      (f'{side}_{name}', side, changes) for name, changes in _of_each_family()
      for side in ('left', 'right')))
  def test_padding_changes_nothing(self, side, changes):
    torch_model, model, ids = _both(self, 12, **changes)
    real = np.arange(12) < np.array([12, 8])[:, None]
    if side == 'left':
      real = real[:, ::-1]
    positions = np.maximum(np.cumsum(real, 1) - 1, 0)
    want = _torch_logits(
        torch_model, ids, attention_mask=torch.from_numpy(real.astype(int)),
        position_ids=torch.from_numpy(positions))
    mask = np.tril(np.ones((12, 12), bool)) & real[:, None]
    got = tiny.logits(
        model.config, model.params, ids, positions=positions,
        attention_mask=mask)
    np.testing.assert_allclose(got[real], want[real], rtol=0, atol=1e-4)
    alone = tiny.logits(model.config, model.params, ids[1:][:, real[1]])
    np.testing.assert_allclose(got[1][real[1]], alone[0], rtol=0, atol=1e-4)

  @parameterized.named_parameters(*_of_each_family())
  def test_bfloat16_is_as_near_to_float32_as_torchs(self, changes):
    torch_model, model, ids = _both(self, **changes)
    want = _torch_logits(torch_model, ids)
    got = tiny.logits(model.config, model.params, ids, dtype='bfloat16')
    error, limit = (
        np.sqrt(np.mean((np.float32(logits) - want)**2)) / want.std()
        for logits in (got, _torch_logits(torch_model.bfloat16(), ids)))
    self.assertLess(error, min(1.1 * limit, 0.04))
    self.assertGreater(error, 1e-3)

  @parameterized.named_parameters(*_of_each_family())
  def test_gradients(self, changes):
    torch_model, model, ids = _both(self, 12, **changes)
    torch_model.train()
    rows = torch.from_numpy(ids).long()
    torch_model(rows, labels=rows).loss.backward()

    def loss(params):
      logits = tiny.logits(model.config, params, ids[:, :-1])
      return losses.token_nll(logits, ids[:, 1:]).mean()

    got = {t.name: assemble.to_torch(layers, t)
           for t, layers in assemble.layers(
               model.config, families.naming(model.config),
               jax.grad(loss)(model.params))}
    weights = dict(torch_model.named_parameters())
    if not model.config.tie_embeddings:  # The file may name it otherwise.
      weights[families.naming(model.config).names['lm_head']] = weights.pop(
          'lm_head.weight')
    for name, weight in weights.items():
      np.testing.assert_allclose(
          got[name], weight.grad.numpy(), rtol=0, atol=1e-3 * max(
              1, float(weight.grad.abs().max())), err_msg=name)

  @parameterized.named_parameters(*_of_each_family())
  @absltest.skipUnless(
      importlib.util.find_spec('bitsandbytes'), 'no bitsandbytes')
  def test_bitsandbytes_quantizes_the_export_as_the_simulator(self, changes):
    _, model, _ = _both(self, **changes)
    copy = tiny.temp_dir(self) / 'copy'
    hf_io.write(copy, model.config, model.params, None)
    for scheme in ('nf4', 'fp4'):
      want = bnb.read_params(bnb.load(copy, scheme), model.config)
      got = quant.fake_quantize(
          model.params, scheme, layout.block_layout(model.config))
      jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_shards_that_are_written_load(self):
    cfg, ids = tiny.config(), _ids()
    weights, path = tiny.params(cfg), tiny.temp_dir(self) / 'model'
    hf_io.write(path, cfg, weights, None, shard_gb=20_000 / 10**9)
    self.assertTrue((path / 'model.safetensors.index.json').is_file())
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    np.testing.assert_allclose(
        tiny.logits(cfg, weights, ids), _torch_logits(model, ids),
        rtol=0, atol=1e-4)

  @parameterized.named_parameters(
      ('bfloat16', 'bfloat16', 8e-3), ('float16', 'float16', 1e-3))
  def test_export_dtypes(self, dtype, tolerance):
    cfg = tiny.config()
    weights = tiny.params(cfg)
    path = tiny.temp_dir(self) / 'model'
    hf_io.write(path, cfg, weights, None, export_dtype=dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    self.assertEqual(model.dtype, getattr(torch, dtype))
    reloaded = loading.load(path).params
    want = weights['layers']['mlp']['up']
    got = reloaded['layers']['mlp']['up']
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=1e-6)
    torch_up = model.model.layers[1].mlp.up_proj.weight.detach()
    np.testing.assert_array_equal(got[1], torch_up.float().numpy().T)

  def test_sharded_directory(self):
    path = tiny.temp_dir(self) / 'model'
    torch_model, ids = _torch_model(), _ids()
    torch_model.save_pretrained(path, max_shard_size='20KB')
    self.assertTrue((path / 'model.safetensors.index.json').is_file())
    model = loading.load(path)
    np.testing.assert_allclose(
        tiny.logits(model.config, model.params, ids),
        _torch_logits(torch_model, ids), rtol=0, atol=1e-4)
    shard = sorted(path.glob('*.safetensors'))[0]
    shard.unlink()
    with self.assertRaisesRegex(ValueError, f'{shard.name}.*are missing'):
      loading.load(path)


if __name__ == '__main__':
  absltest.main()
