"""Logits equal torch transformers' in both directions, on tiny models."""

import importlib.util

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import transformers

from mansu_jax import quant
from mansu_jax.deployment import bnb
from mansu_jax.models import layout
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests import families
from tests.models import tiny
from tests.models import torch_models

torch = torch_models.torch
_CASES = families.CASES
_OF_EACH_FAMILY = families.of_each_family()


def _both(test, length=40, **changes):
  return torch_models.both(tiny.temp_dir(test) / 'model', length, **changes)


@absltest.skipIf(torch is None, 'torch is not installed')
class TorchParityTest(parameterized.TestCase):

  @parameterized.named_parameters(*_CASES)
  def test_logits_load_and_round_trip(self, changes):
    torch_model, model, ids = _both(self, **changes)
    self.assertLess(torch_models.logits_error(torch_model, model, ids), 1e-4)
    want = torch_models.logits(torch_model, ids)
    self.assertGreater(want.std(), 0.3)

    copy = tiny.temp_dir(self) / 'copy'
    hf_io.write(copy, model.config, model.params, None)
    again = transformers.AutoModelForCausalLM.from_pretrained(copy)
    self.assertEqual(again.dtype, torch.float32)
    np.testing.assert_allclose(
        torch_models.logits(again, ids), want, atol=1e-6)
    for name, weight in again.state_dict().items():
      self.assertTrue(torch.equal(weight, torch_model.state_dict()[name]))
    reloaded = loading.load(copy)
    self.assertEqual(reloaded.config, model.config)
    jax.tree.map(
        np.testing.assert_array_equal, reloaded.params, model.params)

  @parameterized.named_parameters(*(
      (f'{side}_{name}', side, changes) for name, changes in _OF_EACH_FAMILY
      for side in ('left', 'right')))
  def test_padding_changes_nothing(self, side, changes):
    self.assertLess(torch_models.padding_error(
        side, *_both(self, 12, **changes)), 1e-4)

  @parameterized.named_parameters(*_OF_EACH_FAMILY)
  def test_bfloat16_is_as_near_to_float32_as_torchs(self, changes):
    error, limit = torch_models.bfloat16_errors(*_both(self, **changes))
    self.assertLess(error, min(1.1 * limit, 0.04))
    self.assertGreater(error, 1e-3)

  @parameterized.named_parameters(*_OF_EACH_FAMILY)
  def test_gradients(self, changes):
    for name, error in torch_models.gradient_errors(
        *_both(self, 12, **changes)).items():
      self.assertLess(error, 1e-3, name)

  @parameterized.named_parameters(*_OF_EACH_FAMILY)
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
    cfg, ids = tiny.config(), torch_models.ids()
    weights, path = tiny.params(cfg), tiny.temp_dir(self) / 'model'
    hf_io.write(path, cfg, weights, None, shard_gb=20_000 / 10**9)
    self.assertTrue((path / 'model.safetensors.index.json').is_file())
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    np.testing.assert_allclose(
        tiny.logits(cfg, weights, ids), torch_models.logits(model, ids),
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
    torch_model, ids = torch_models.make(), torch_models.ids()
    torch_model.save_pretrained(path, max_shard_size='20KB')
    self.assertTrue((path / 'model.safetensors.index.json').is_file())
    model = loading.load(path)
    np.testing.assert_allclose(
        tiny.logits(model.config, model.params, ids),
        torch_models.logits(torch_model, ids), rtol=0, atol=1e-4)
    shard = sorted(path.glob('*.safetensors'))[0]
    shard.unlink()
    with self.assertRaisesRegex(ValueError, f'1 are missing: .*{shard.name}'):
      loading.load(path)


if __name__ == '__main__':
  absltest.main()
