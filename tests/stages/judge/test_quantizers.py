"""The quantizers of a run: results, calibration and description."""

import dataclasses
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import pytest

from mansu_jax import quant
from mansu_jax.models import calibration
from mansu_jax.models import layout as model_layout
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import quantizer_rules
from tests import runs
from tests import tiny_job

_ALL = ('nf4', 'q4_0', 'q4_k', 'gptq_g128')


class QuantizersTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    flags = tiny_job.make(pathlib.Path(folder) / 'job', train=False)
    cls.config = runs.parse(*flags, f'--quant_schemes={",".join(_ALL)}')
    cls.model = loading.load(cls.config.model)
    cls.inputs = inputs_lib.read(cls.config)
    cls.quantize = cls._quantizers()

  @classmethod
  def _quantizers(cls):
    return quantizers.Quantizers(
        _ALL, cls.model, calibration_texts=cls.inputs.calibration,
        calibration_tokens=cls.config.eval.calibration_tokens,
        guarantee=quantizer_rules.guaranteed(_ALL, 'hold'))

  @pytest.mark.slow
  def test_each_quantizer_equals_direct_quantization(self):
    params = self.model.params
    layout = model_layout.block_layout(self.model.config)
    for name in _ALL[:3]:
      jax.tree.map(
          np.testing.assert_array_equal, self.quantize(name, params),
          quant.fake_quantize(params, name, layout))
    windows = calibration.choose_windows(
        self.inputs.calibration, self.model.tokenizer, most_tokens=4096)
    want = calibration.dequantize(params, calibration.encode(
        self.model.config, params, *windows, 'gptq_g128'))
    jax.tree.map(np.testing.assert_array_equal,
                 self.quantize('gptq_g128', params), want)

  @pytest.mark.slow
  def test_calibrates_once_for_the_same_params_and_scheme(self):
    params = self.model.params
    other = params | {'embed': params['embed'] * 2}
    quantize = self._quantizers()
    with mock.patch.object(
        calibration, 'encode', side_effect=calibration.encode) as made:
      first = quantize('gptq_g128', params)
      again = quantize('gptq_g128', params)
      quantize('gptq_g128', other)
      quantize.survival(params, other)
    self.assertEqual(made.call_count, 2)
    jax.tree.map(np.testing.assert_array_equal, first, again)

  def test_calibration_text_is_read_where_it_is_needed(self):
    self.assertNotEmpty(self.inputs.calibration)
    self.assertIn('shipped:text_retain.jsonl', self.inputs.hashes)
    plain = inputs_lib.read(dataclasses.replace(
        self.config, quant_schemes=('nf4',)))
    self.assertEmpty(plain.calibration)
    self.assertNotIn('shipped:text_retain.jsonl', plain.hashes)

  def test_describe_states_guarantees_and_fallbacks(self):
    said = self.quantize.describe()
    self.assertEqual(
        [said[name]['guaranteed'] for name in _ALL],
        [True, True, False, False])
    self.assertEqual(set(said['q4_k']['instead'].values()), {'q5_0'})
    self.assertEmpty(said['q4_0']['instead'])
    self.assertGreater(said['gptq_g128']['calibration']['tokens'], 1000)

  @pytest.mark.slow
  def test_survival_of_no_edit(self):
    shares, _ = self.quantize.survival(self.model.params, self.model.params)
    for name in _ALL:
      self.assertEqual(shares[name]['moved'], 0)
      self.assertEqual(shares[name]['changed_codes'], 0)


if __name__ == '__main__':
  absltest.main()
