"""Each scheme against a loop reference, and what all of them promise."""

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import schemes
from tests.reference import quant_naive

_NAMES = tuple(schemes.SCHEMES)
_encode = jax.jit(lambda rows, scheme: scheme.encode(rows), static_argnums=1)
_snap = jax.jit(
    lambda rows, scheme: scheme.fake_quantize(rows), static_argnums=1)


def _heavy_tails(shape, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_t(3, shape) * 0.02).astype(np.float32)


class SchemesTest(parameterized.TestCase):

  @parameterized.product(
      name=_NAMES, shape=((4, 128), (3, 200), (1, 5)))
  def test_equals_loops(self, name, shape):
    matrix = _heavy_tails(shape)
    matrix[0, :3] = 0
    code, scale, value = quant_naive.quantize(matrix, name)
    codes = _encode(matrix, schemes.get(name))
    np.testing.assert_array_equal(codes.code, code)
    np.testing.assert_array_equal(codes.scale, scale)
    np.testing.assert_array_equal(_snap(matrix, schemes.get(name)), value)

  @parameterized.parameters(*_NAMES)
  def test_stacked_matrices_do_not_share_blocks(self, name):
    stack = _heavy_tails((2, 3, 7, 13))
    got = _snap(stack, schemes.get(name))
    for index in np.ndindex(2, 3):
      want = quant_naive.quantize(stack[index], name)[2]
      np.testing.assert_array_equal(got[index], want)

  @parameterized.parameters(*_NAMES)
  def test_jit_equals_eager(self, name):
    matrix, scheme = jnp.asarray(_heavy_tails((8, 100))), schemes.get(name)
    np.testing.assert_array_equal(
        scheme.fake_quantize(matrix), _snap(matrix, scheme))

  @parameterized.parameters(*_NAMES)
  def test_values_are_fixed_points(self, name):
    matrix, scheme = _heavy_tails((8, 100)), schemes.get(name)
    once = _snap(matrix, scheme)
    np.testing.assert_array_equal(_snap(once, scheme), once)

  @parameterized.parameters(*_NAMES)
  def test_zero_blocks_stay_zero_and_frozen(self, name):
    codes = _encode(np.zeros((2, 128), np.float32), schemes.get(name))
    np.testing.assert_array_equal(codes.scale, 0)
    self.assertTrue(np.all(codes.frozen))
    value = _snap(np.zeros((2, 128), np.float32), schemes.get(name))
    np.testing.assert_array_equal(value, 0)

  @parameterized.parameters(*_NAMES)
  def test_frozen_are_the_block_maxima(self, name):
    matrix = _heavy_tails((6, 150))
    codes = _encode(matrix, schemes.get(name))
    np.testing.assert_array_equal(codes.frozen, abs(matrix) == codes.scale)

  @parameterized.parameters(*_NAMES)
  def test_boundaries_enclose_and_lead_to_neighbours(self, name):
    scheme, matrix = schemes.get(name), _heavy_tails((8, 128))
    codes = _encode(matrix, scheme)
    lo, hi = map(np.asarray, scheme.boundaries(codes.code, codes.scale))
    self.assertTrue(np.all((lo <= matrix) & (matrix <= hi)))
    old = np.asarray(scheme.decode(codes.code, codes.scale))
    scale = np.asarray(codes.scale)
    for end, sign in ((lo, -1), (hi, 1)):
      finite = np.isfinite(end)
      inside = np.where(finite, end - sign * 1e-5 * scale, sign * 9 * scale)
      outside = end + sign * 1e-5 * scale
      np.testing.assert_array_equal(scheme.snap(inside, codes.scale), old)
      new = np.asarray(scheme.snap(outside, codes.scale))[finite]
      self.assertTrue(np.all(sign * (new - old[finite]) > 0))

  @parameterized.parameters(*_NAMES)
  def test_levels_are_the_order_of_values(self, name):
    scheme = schemes.get(name)
    x = np.linspace(-1, 1, 999, dtype=np.float32)
    code = scheme.encode_at(x, np.ones_like(x))
    values = np.asarray(scheme.decode(code, np.ones_like(x)))
    level = np.asarray(scheme.level(code)).astype(int)
    np.testing.assert_array_equal(
        np.sign(np.diff(values)), np.sign(np.diff(level)))

  def test_fp4_has_two_zeros_of_one_level(self):
    scheme = schemes.get('fp4')
    x = np.array([[1.0, 0.001, -0.001]], np.float32)
    codes = _encode(x, scheme)
    np.testing.assert_array_equal(codes.code, [[3, 8, 0]])
    level = scheme.level(codes.code)
    self.assertEqual(level[0, 1], level[0, 2])
    lo, hi = scheme.boundaries(codes.code, codes.scale)
    np.testing.assert_allclose(lo[0, 1:], -1 / 384, rtol=1e-6)
    np.testing.assert_allclose(hi[0, 1:], 1 / 384, rtol=1e-6)

  def test_integers_by_hand(self):
    x = np.array([[7.0, 0.5, 1.5, -2.5, -7.0, 0.51]], np.float32)
    codes = _encode(x, schemes.get('int4_g128'))
    np.testing.assert_array_equal(  # Ties to even.
        codes.code.astype(int) - 7, [[7, 0, 2, -2, -7, 1]])

  @parameterized.parameters(('int8', 127), ('int4_g128', 7))
  def test_divides_by_the_step(self, name, largest):
    # On ties, XLA's x * (1 / step) would round to other integers.
    half = np.arange(-largest, largest) + np.float32(0.5)
    apart = 0
    for absmax in np.linspace(1, 2, 20, dtype=np.float32):
      step = absmax / np.float32(largest)
      row = np.append(half.astype(np.float32) * step, absmax)[None]
      got = np.asarray(_encode(row, schemes.get(name)).code).astype(int)
      np.testing.assert_array_equal(got - largest, np.rint(row / step))
      apart += np.sum(np.rint(row / step) != np.rint(row * (1 / step)))
    self.assertGreater(apart, 0)

  @parameterized.parameters(*_NAMES)
  @settings(max_examples=30, deadline=None)
  @given(seed=st.integers(0, 2**32 - 1), power=st.integers(-130, 110))
  def test_at_a_fixed_scale_it_is_the_same(self, name, seed, power):
    matrix = _heavy_tails((3, 150), seed) * np.float32(2.0**power)
    scheme = schemes.get(name)
    codes = _encode(matrix, scheme)
    np.testing.assert_array_equal(
        scheme.snap(matrix, codes.scale, codes.tail), _snap(matrix, scheme))

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, r"'nf5'.*'fp4', 'int4_g128'"):
      schemes.get('nf5')


if __name__ == '__main__':
  absltest.main()
