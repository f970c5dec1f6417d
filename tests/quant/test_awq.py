"""AWQ against loops over the grid, and its properties."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import affine
from mansu_jax.quant import awq as awq_lib
from tests.quant import inputs
from tests.reference import calibrated_naive

_awq = jax.jit(awq_lib.awq, static_argnames=('group', 'grid'))


def _statistics(size, seed=1):
  x = inputs.correlated(size, seed)
  return inputs.second_moment(x), np.mean(np.abs(x), axis=0)


class AwqTest(parameterized.TestCase):

  @parameterized.parameters(((5, 32), 8, 20), ((4, 30), 8, 7), ((3, 24), 99, 4))
  def test_equals_loops(self, shape, group, grid):
    rows = inputs.weights(shape)
    moment, mean_abs = _statistics(shape[1])
    got = _awq(rows, moment, mean_abs, group=group, grid=grid)
    code, scale, zero = calibrated_naive.awq(
        rows, moment, mean_abs, group, grid)
    np.testing.assert_array_equal(got.code, code)
    got_scale, got_zero = affine.spread(got)
    np.testing.assert_allclose(got_scale, scale, rtol=1e-5)
    np.testing.assert_array_equal(got_zero, zero)

  @parameterized.parameters(((6, 64), 64), ((6, 90), 32))
  def test_clipping_equals_loops(self, shape, group):
    rows = inputs.weights(shape)
    moment, mean_abs = _statistics(shape[1])
    clipped = np.arange(shape[0]) < 2
    plain = _awq(rows, moment, mean_abs, group=group)
    got = _awq(rows, moment, mean_abs, group=group, clipped=clipped)
    np.testing.assert_array_equal(got.code[~clipped], plain.code[~clipped])
    # The input scales, up to a factor for each group of a row.
    alpha = calibrated_naive.best_alpha(rows, moment, mean_abs, group, 20)
    scales = calibrated_naive.input_scales(mean_abs, alpha)
    some = calibrated_naive.clip(
        rows[clipped] * scales, moment / np.outer(scales, scales), group)
    code, scale, zero = calibrated_naive.rounding(some, group)
    np.testing.assert_array_equal(got.code[clipped], code)
    got_scale, got_zero = affine.spread(got)
    np.testing.assert_allclose(
        got_scale[clipped], scale / scales, rtol=1e-5)
    np.testing.assert_array_equal(got_zero[clipped], zero)
    self.assertGreater(np.sum(code != plain.code[clipped]), 10)

  @parameterized.parameters(0, 1, 2, 3)
  def test_has_less_error_than_rounding(self, seed):
    rows = inputs.weights((16, 96), seed)
    moment, mean_abs = _statistics(96, seed + 10)
    error = lambda codes: float(affine.output_error(
        affine.decode(codes) - rows, moment))
    rounded = error(affine.round_to_nearest(rows, group=32))
    found = error(_awq(rows, moment, mean_abs, group=32))
    self.assertLess(found, 0.8 * rounded)
    self.assertLessEqual(
        error(_awq(rows, moment, mean_abs, group=32, grid=2)), rounded)

  def test_one_alpha_rounds_to_nearest(self):
    rows = inputs.weights((4, 200))
    moment, mean_abs = _statistics(200)
    got = _awq(rows, moment, mean_abs, grid=1)
    want = affine.round_to_nearest(rows)
    np.testing.assert_array_equal(got.code, want.code)
    np.testing.assert_allclose(
        affine.spread(got)[0], affine.spread(want)[0], rtol=1e-6)

  def test_is_invariant_to_the_scale_of_the_inputs(self):
    rows = inputs.weights((4, 48))
    moment, mean_abs = _statistics(48)
    got = _awq(rows, moment * np.float32(2.0**40),
               mean_abs * np.float32(2.0**20), group=16)
    jax.tree.map(
        np.testing.assert_array_equal, got,
        _awq(rows, moment, mean_abs, group=16))

  def test_rows_share_the_input_scales(self):
    # With one group, rows differ by their range and columns by the scales.
    rows = inputs.weights((6, 32))
    moment, mean_abs = _statistics(32)
    scale, _ = map(np.asarray, affine.spread(
        _awq(rows, moment, mean_abs, group=32)))
    share = scale / scale[:, :1]
    np.testing.assert_allclose(share, share[:1].repeat(6, 0), rtol=1e-5)

  @parameterized.parameters(0.0, 0.03)
  def test_constant_rows(self, value):
    rows = np.full((2, 24), value, np.float32)
    got = affine.decode(_awq(rows, *_statistics(24), group=8))
    np.testing.assert_allclose(got, rows, rtol=1e-5)

  def test_dead_inputs(self):
    rows = inputs.weights((3, 24))
    x = inputs.correlated(24)
    x[:, :5] = 0
    got = _awq(rows, inputs.second_moment(x), np.mean(np.abs(x), axis=0))
    self.assertTrue(np.all(np.isfinite(affine.decode(got))))
    got = _awq(rows, np.zeros((24, 24)), np.zeros(24))
    np.testing.assert_array_equal(got.code, affine.round_to_nearest(rows).code)

  def test_vmap_and_jit_equal_eager(self):
    rows = np.stack([inputs.weights((4, 40), seed) for seed in range(2)])
    moments, means = map(np.stack, zip(*(_statistics(40, i) for i in range(2))))
    got = jax.vmap(lambda *args: awq_lib.awq(*args, group=16))(
        rows, moments, means)
    for i in range(2):
      want = awq_lib.awq(
          jnp.asarray(rows[i]), moments[i], jnp.asarray(means[i]), group=16)
      np.testing.assert_array_equal(got.code[i], want.code)
      np.testing.assert_array_equal(
          _awq(rows[i], moments[i], means[i], group=16).code, want.code)

  def test_bad_arguments(self):
    rows, (moment, mean_abs) = inputs.weights((4, 40)), _statistics(40)
    with self.assertRaisesRegex(ValueError, r'\(39, 39\)'):
      awq_lib.awq(rows, np.eye(39), mean_abs)
    with self.assertRaisesRegex(ValueError, r'\(39,\); wanted \(40,\)'):
      awq_lib.awq(rows, moment, mean_abs[1:])
    with self.assertRaisesRegex(ValueError, 'grid has 0'):
      awq_lib.awq(rows, moment, mean_abs, grid=0)


if __name__ == '__main__':
  absltest.main()
