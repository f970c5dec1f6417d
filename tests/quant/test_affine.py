"""Asymmetric integers against loops, by hand, and in edge cases."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import affine
from tests.reference import calibrated_naive


def _weights(shape, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_t(3, shape) * 0.02).astype(np.float32)


class AffineTest(parameterized.TestCase):

  @parameterized.parameters(((4, 128), 128), ((3, 200), 128), ((2, 5), 2))
  def test_equals_loops(self, shape, group):
    rows = _weights(shape)
    got = affine.round_to_nearest(rows, group=group)
    code, scale, zero = calibrated_naive.rounding(rows, group)
    np.testing.assert_array_equal(got.code, code)
    got_scale, got_zero = affine.spread(got)
    np.testing.assert_allclose(got_scale, scale, rtol=1e-6)
    np.testing.assert_array_equal(got_zero, zero)

  def test_by_hand(self):
    rows = np.array([[-5.0, 10.0, 0.4, 0.6, 0.0, -4.6]], np.float32)
    got = affine.round_to_nearest(rows)
    np.testing.assert_array_equal(got.code, [[0, 15, 5, 6, 5, 0]])
    np.testing.assert_array_equal(got.scale, [[1]])
    np.testing.assert_array_equal(got.zero, [[5]])
    np.testing.assert_array_equal(
        affine.level(got), [[-5, 10, 0, 1, 0, -5]])

  @parameterized.parameters(0.03, -0.03, 0.0)
  def test_constant_groups_are_exact(self, value):
    rows = np.full((2, 200), value, np.float32)
    got = affine.decode(affine.round_to_nearest(rows))
    np.testing.assert_allclose(got, rows, rtol=1e-6)

  def test_zero_is_a_value_of_every_group(self):
    rows = _weights((6, 64)) + np.float32(0.5)
    rows[:, 3] = 0
    got = affine.decode(affine.round_to_nearest(rows, group=16))
    np.testing.assert_array_equal(got[:, 3], 0)

  @parameterized.parameters(1, 16, 40, 64)
  def test_fake_quantize_equals_decoded_codes(self, group):
    rows = _weights((3, 40))
    np.testing.assert_array_equal(
        affine.fake_quantize(rows, group=group),
        affine.decode(affine.round_to_nearest(rows, group=group)))

  def test_tiny_groups_become_zeros(self):
    rows = np.full((1, 8), 1e-38, np.float32)
    np.testing.assert_array_equal(
        affine.decode(affine.round_to_nearest(rows)), np.zeros((1, 8)))

  def test_values_are_within_half_a_step(self):
    # The zero point is rounded too, so an end of the range may be a step away.
    rows = _weights((8, 256))
    codes = affine.round_to_nearest(rows)
    error = np.abs(affine.decode(codes) - rows) / affine.spread(codes)[0]
    self.assertLess(np.max(error), 1.0)
    inner = (codes.code > 0) & (codes.code < affine.LARGEST)
    self.assertLessEqual(np.max(error[inner]), 0.5 + 1e-5)

  def test_jit_and_stacks(self):
    stack = jnp.asarray(_weights((2, 3, 4, 70)))
    got = jax.jit(affine.round_to_nearest)(stack)
    for index in np.ndindex(2, 3):
      want = affine.round_to_nearest(stack[index])
      jax.tree.map(
          lambda a, b, at=index: np.testing.assert_array_equal(a[at], b),
          got, want)

  def test_output_error(self):
    error, inputs = _weights((3, 5)), _weights((40, 5), seed=1)
    want = np.mean(np.sum((inputs @ error.T)**2, axis=1))
    got = affine.output_error(error, inputs.T @ inputs / 40)
    np.testing.assert_allclose(got, want, rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
