"""Emulated IEEE arithmetic against NumPy, which keeps subnormals."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.quant import codebooks
from mansu_jax.quant import extremes


def _random_floats(rng, n):
  """float32 of every exponent, subnormals and zeros included."""
  bits = rng.integers(0, 0x7F800000, n, dtype=np.int32)
  bits[: n // 4] &= 0x007FFFFF
  bits[: n // 100] = 0
  return bits.view(np.float32)


class ExtremesTest(parameterized.TestCase):

  def test_products_round_once(self):
    rng = np.random.default_rng(0)
    scale = _random_floats(rng, 400_000)
    for table in (codebooks.NF4, codebooks.FP4):
      value = rng.choice(table, scale.size)
      got = np.asarray(jax.jit(extremes.multiply)(value, scale))
      want = value * scale
      np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))

  @parameterized.named_parameters(('full', False), ('tail', True))
  def test_normalized_values(self, tail):
    rng = np.random.default_rng(1)
    scale = _random_floats(rng, 400_000)
    with np.errstate(all='ignore'):
      share = rng.uniform(-1, 1, scale.size).astype(np.float32)
      values = scale * share
      if tail:
        want = np.where(scale == 0, np.float32(0), values / scale)
      else:
        want = values * (np.float32(1) / np.maximum(scale, np.float32(1e-38)))
    got = np.asarray(jax.jit(extremes.normalize)(
        values, scale, np.full(scale.shape, tail)))
    ordinary = np.abs(want) > 1e-30
    np.testing.assert_array_equal(
        got[ordinary].view(np.int32), want[ordinary].view(np.int32))
    np.testing.assert_array_equal(
        np.sign(_widen(got)), np.sign(_widen(want)))

  def test_any_extreme(self):
    for x, extreme in (
        (0.0, False), (-1.0, False), (1e-3, False), (1e-30, True),
        (-1e30, True), (1e-42, True)):
      x = np.array([1.0, x], np.float32)
      self.assertEqual(bool(jax.jit(extremes.any_extreme)(x)), extreme)


def _widen(x):
  return np.asarray(x, np.float64)


if __name__ == '__main__':
  absltest.main()
