"""GPTQ against column-by-column loops and qwix, and its properties."""

import importlib.util

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.quant import affine
from mansu_jax.quant import gptq as gptq_lib
from tests.quant import inputs
from tests.reference import calibrated_naive

_gptq = jax.jit(gptq_lib.gptq, static_argnames=('group', 'act_order'))


def _error(codes, rows, moment):
  return float(affine.output_error(affine.decode(codes) - rows, moment))


class GptqTest(parameterized.TestCase):

  @parameterized.parameters(
      ((5, 32), 8), ((4, 30), 8), ((3, 24), 128), ((6, 17), 1), ((1, 1), 4))
  @pytest.mark.medium
  def test_equals_loops(self, shape, group):
    rows = inputs.weights(shape)
    moment = inputs.second_moment(inputs.correlated(shape[1]))
    got = _gptq(rows, moment, group=group)
    code, scale, zero = calibrated_naive.gptq(rows, moment, group)
    np.testing.assert_array_equal(got.code, code)
    got_scale, got_zero = affine.spread(got)
    np.testing.assert_allclose(got_scale, scale, rtol=1e-3)
    np.testing.assert_array_equal(got_zero, zero)

  @parameterized.parameters(((5, 32), 8), ((4, 30), 8))
  def test_equals_loops_from_the_largest_input_down(self, shape, group):
    rows = inputs.weights(shape)
    moment = inputs.second_moment(inputs.correlated(shape[1]))
    got = _gptq(rows, moment, group=group, act_order=True)
    code, scale, zero = calibrated_naive.gptq_by_size(rows, moment, group)
    np.testing.assert_array_equal(got.code, code)
    got_scale, got_zero = affine.spread(got)
    np.testing.assert_allclose(got_scale, scale, rtol=1e-3)
    np.testing.assert_array_equal(got_zero, zero)

  @parameterized.parameters(0, 1, 2)
  def test_has_less_error_than_rounding_on_correlated_inputs(self, seed):
    rows = inputs.weights((16, 96), seed)
    moment = inputs.second_moment(inputs.correlated(96, seed + 10))
    rounded = affine.round_to_nearest(rows, group=32)
    self.assertLess(
        _error(_gptq(rows, moment, group=32), rows, moment),
        0.5 * _error(rounded, rows, moment))

  @parameterized.parameters(((7, 256),), ((3, 200),))
  def test_rounds_to_nearest_for_uncorrelated_inputs(self, shape):
    rows = inputs.weights(shape)
    got = _gptq(rows, np.eye(shape[1], dtype=np.float32))
    want = affine.round_to_nearest(rows)
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_is_invariant_to_the_scale_of_the_inputs(self):
    rows = inputs.weights((4, 48))
    moment = inputs.second_moment(inputs.correlated(48))
    got = _gptq(rows, moment * np.float32(2.0**20), group=16)
    jax.tree.map(
        np.testing.assert_array_equal, got, _gptq(rows, moment, group=16))

  def test_dead_inputs_get_zeros_and_do_not_affect_others(self):
    rows = inputs.weights((4, 40))
    x = inputs.correlated(40)
    x[:, [0, 7, 39]] = 0
    moment = inputs.second_moment(x)
    got = _gptq(rows, moment, group=16)
    np.testing.assert_array_equal(
        affine.decode(got)[:, [0, 7, 39]], np.zeros((4, 3)))
    code, _, _ = calibrated_naive.gptq(rows, moment, 16)
    np.testing.assert_array_equal(got.code, code)

  def test_inputs_that_are_all_dead(self):
    got = _gptq(inputs.weights((2, 8)), np.zeros((8, 8), np.float32))
    np.testing.assert_array_equal(affine.decode(got), np.zeros((2, 8)))

  def test_fewer_inputs_than_weights_a_row(self):
    rows = inputs.weights((8, 128))
    moment = inputs.second_moment(inputs.correlated(128, count=20))
    got = _gptq(rows, moment)
    self.assertTrue(np.all(np.isfinite(got.scale)))
    self.assertLess(
        _error(got, rows, moment),
        _error(affine.round_to_nearest(rows), rows, moment))

  @parameterized.parameters(0.03, 0.0)
  def test_constant_rows(self, value):
    rows = np.full((2, 24), value, np.float32)
    moment = inputs.second_moment(inputs.correlated(24))
    got = affine.decode(_gptq(rows, moment, group=8))
    np.testing.assert_allclose(got, rows, rtol=1e-5, atol=1e-8)

  def test_jit_equals_eager(self):
    rows = jnp.asarray(inputs.weights((4, 40)))
    moment = jnp.asarray(inputs.second_moment(inputs.correlated(40)))
    eager = gptq_lib.gptq(rows, moment, group=16)
    compiled = _gptq(rows, moment, group=16)
    np.testing.assert_array_equal(eager.code, compiled.code)
    np.testing.assert_allclose(eager.scale, compiled.scale, rtol=1e-5)

  def test_vmap(self):
    rows = np.stack([inputs.weights((4, 40), seed) for seed in range(3)])
    moments = np.stack([
        inputs.second_moment(inputs.correlated(40, seed)) for seed in range(3)])
    got = jax.vmap(lambda r, h: gptq_lib.gptq(r, h, group=16))(rows, moments)
    for i in range(3):
      want = _gptq(rows[i], moments[i], group=16)
      np.testing.assert_array_equal(got.code[i], want.code)
      np.testing.assert_allclose(got.scale[i], want.scale, rtol=1e-5)

  @parameterized.parameters(8, 16)  # With one group, codes are valid.
  def test_scales_are_nan_if_there_is_no_factor(self, group):
    moment = inputs.second_moment(inputs.correlated(16))
    moment[:, 3] = moment[3] = 0
    moment[3, 4] = moment[4, 3] = 1e9
    moment[3, 3] = 1
    got = _gptq(inputs.weights((4, 16)), moment, group=group)
    self.assertTrue(np.isnan(got.scale).all())

  def test_bad_shapes(self):
    rows = inputs.weights((4, 40))
    with self.assertRaisesRegex(ValueError, r'\(4, 40\).*\(39, 39\)'):
      gptq_lib.gptq(rows, np.eye(39))
    with self.assertRaisesRegex(ValueError, r'jax\.vmap'):
      gptq_lib.gptq(rows[None], np.eye(40))
    with self.assertRaisesRegex(ValueError, 'group is 0'):
      gptq_lib.gptq(rows, np.eye(40), group=0)

  @parameterized.parameters(16, 48)
  def test_equals_qwix(self, group):
    if importlib.util.find_spec('qwix') is None:
      self.skipTest('qwix is not installed')
    moment = inputs.second_moment(inputs.correlated(48))
    # Shifted, since qwix fails at a zero point of 0 (code 8 here).
    for row in inputs.weights((6, 48)) + np.float32(0.03):
      got = _gptq(row[None], moment, group=group)
      code, scale = _qwix(row[None], moment, group)
      np.testing.assert_array_equal(got.code, code)
      np.testing.assert_allclose(got.scale, scale, rtol=1e-3)


def _qwix(row, moment, group):
  """Codes and scales of one row; with zero points, qwix supports only one."""
  from qwix._src.core import qarray  # pylint: disable=g-import-not-at-top
  from qwix.contrib import gptq_core  # pylint: disable=g-import-not-at-top
  how = qarray.HowToQuantize(
      qtype='int4', channelwise_axes=(0,), tiled_axes={1: group},
      calibration_method='minmax')
  with jax.numpy_rank_promotion('allow'):
    found, _ = gptq_core.quantize_weight(
        jnp.asarray(row), jnp.asarray(moment), how, blocksize=16)
  return np.asarray(found.qvalue).astype(int) + 8, found.scale


if __name__ == '__main__':
  absltest.main()
