"""Names and settings of the calibrated schemes."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.quant import affine
from mansu_jax.quant import awq
from mansu_jax.quant import calibrated
from mansu_jax.quant import gptq
from mansu_jax.quant import schemes
from tests.quant import inputs


class CalibratedTest(parameterized.TestCase):

  def test_names(self):
    self.assertEqual(set(calibrated.CALIBRATED), {'gptq_g128', 'awq_g128'})
    self.assertEmpty(set(calibrated.CALIBRATED) & set(schemes.SCHEMES))
    for name, scheme in calibrated.CALIBRATED.items():
      self.assertEqual(scheme.name, name)
      self.assertIs(calibrated.get(name), scheme)
      self.assertIs(calibrated.get(scheme), scheme)

  @pytest.mark.medium
  def test_methods(self):
    rows, x = inputs.weights((3, 32)), inputs.correlated(32)
    moment, mean_abs = inputs.second_moment(x), np.mean(np.abs(x), axis=0)
    statistics = calibrated.InputStatistics(moment, mean_abs)
    make = lambda **kw: calibrated.CalibratedScheme(name='x', group=8, **kw)
    same = np.testing.assert_array_equal
    same(make(method='gptq', damping=0.1).encode(rows, statistics).code,
         gptq.gptq(
             rows, moment, group=8, damping=0.1, act_order=True).code)
    same(make(method='gptq', act_order=False).encode(rows, statistics).code,
         gptq.gptq(rows, moment, group=8).code)
    some = make(method='awq', grid=5, clip=False)
    same(some.encode(rows, statistics).code,
         awq.awq(rows, moment, mean_abs, group=8, grid=5).code)
    same(some.encode(rows, statistics, foldable=False).code,
         affine.round_to_nearest(rows, group=8).code)

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, "'gptq'.*'awq_g128', 'gptq_g128'"):
      calibrated.get('gptq')

  @parameterized.parameters(
      (dict(method='hqq'), "'hqq'.*'gptq', 'awq'"),
      (dict(method='awq', grid=0), 'grid=0'),
      (dict(method='awq', group=0), 'group=0'),
      (dict(method='gptq', damping=-1.0), 'damping=-1.0'),
      (dict(method='gptq', damping=float('nan')), 'damping=nan'))
  def test_bad_settings(self, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      calibrated.CalibratedScheme(name='x', **fields)


if __name__ == '__main__':
  absltest.main()
