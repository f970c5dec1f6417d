"""Logits equal torch transformers' in both directions, on tiny models."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests.models import tiny

try:
  import torch
  import transformers
except ImportError:
  torch = None

_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 16}


def _torch_model(seed=0, **changes):
  fields = {
      'vocab_size': 96, 'hidden_size': 32, 'intermediate_size': 48,
      'num_hidden_layers': 2, 'num_attention_heads': 4,
      'num_key_value_heads': 2, 'max_position_embeddings': 128,
      'initializer_range': 0.2, 'tie_word_embeddings': True,
      'bos_token_id': 1, 'eos_token_id': 2} | changes
  torch.manual_seed(seed)
  config = transformers.AutoConfig.for_model(
      fields.pop('model_type', 'llama'), **fields)
  model = transformers.AutoModelForCausalLM.from_config(config)
  for name, weight in model.named_parameters():
    if 'norm' in name:
      torch.nn.init.normal_(weight, 1.0, 0.2)
    if 'bias' in name:
      torch.nn.init.normal_(weight, 0.0, 1.0)
  return model.eval()


def _torch_logits(model, ids):
  with torch.no_grad():
    return model(torch.from_numpy(ids).long()).logits.float().numpy()


def _ids(length=40):
  return np.random.default_rng(3).integers(0, 96, (2, length), dtype=np.int32)


@absltest.skipIf(torch is None, 'torch is not installed')
class TorchParityTest(parameterized.TestCase):

  @parameterized.named_parameters(
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
      ('qwen3', {'model_type': 'qwen3', 'head_dim': 12}))
  def test_logits_load_and_round_trip(self, changes):
    source = tiny.temp_dir(self) / 'model'
    torch_model, ids = _torch_model(**changes), _ids()
    torch_model.save_pretrained(source)
    want = _torch_logits(torch_model, ids)
    model = loading.load(source)
    got = tiny.logits(model.config, model.params, ids)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
    self.assertGreater(want.std(), 0.3)

    copy = source.parent / 'copy'
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

  def test_shards_that_are_written_load(self):
    cfg, ids = tiny.config(), _ids()
    weights, path = tiny.params(cfg), tiny.temp_dir(self) / 'model'
    with mock.patch.object(hf_io, 'MOST_IN_A_FILE', 20_000):
      hf_io.write(path, cfg, weights, None)
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
