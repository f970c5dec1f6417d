"""Each scheme against a loop reference, and properties of all schemes."""

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.quant import schemes
from tests.reference import gguf_naive
from tests.reference import quant_naive

_PLAIN = ('nf4', 'fp4', 'int8', 'int4', 'int4_g128', 'int4_g32')
_GGUF = ('q4_0', 'q4_1', 'q5_0', 'q8_0')
_K = ('q4_k', 'q6_k')
_HELD = (*_PLAIN, *_GGUF, 'nf4_b32', 'fp4_b256', 'nf4_dq', 'fp4_b32_dq')
_NAMES = (*_HELD, *_K)
_encode = jax.jit(lambda rows, scheme: scheme.encode(rows), static_argnums=1)
_snap = jax.jit(
    lambda rows, scheme: scheme.fake_quantize(rows), static_argnums=1)


def _heavy_tails(shape, seed=0):
  rng = np.random.default_rng(seed)
  return (rng.standard_t(3, shape) * 0.02).astype(np.float32)


def _rows(name, out, columns, seed=0):
  """Weights in rows of a length that the scheme supports."""
  cut = 256 if name in _K else 32 if name in _GGUF else 1
  return _heavy_tails((out, -(-columns // cut) * cut), seed)


class SchemesTest(parameterized.TestCase):

  def test_all_are_covered(self):
    self.assertEqual({*_PLAIN, *_GGUF, *_K}, set(schemes.SCHEMES))
    for name, scheme in schemes.SCHEMES.items():
      self.assertEqual(scheme.name, name)
      self.assertEqual(scheme.holds_scale, name not in _K)

  @parameterized.product(
      name=(*_PLAIN, 'nf4_b32', 'fp4_b256'),
      shape=((4, 128), (3, 200), (1, 5)))
  def test_equals_loops(self, name, shape):
    matrix = _heavy_tails(shape)
    matrix[0, :3] = 0
    code, scale, value = quant_naive.quantize(matrix, name)
    codes = _encode(matrix, schemes.get(name))
    np.testing.assert_array_equal(codes.code, code)
    np.testing.assert_array_equal(codes.scale, scale)
    np.testing.assert_array_equal(_snap(matrix, schemes.get(name)), value)

  def test_gguf_equals_loops(self):
    for name in _GGUF:
      with self.subTest(name):
        matrix = _heavy_tails((6, 224))
        matrix[0, :64] = 0
        matrix[1] = np.round(matrix[1] * 64) / 64  # Ties.
        matrix[2, :32] = -0.25
        matrix[3] = abs(matrix[3])
        matrix[4, 5:8] = [0.5, -0.5, 0.5]  # Largest twice, with both signs.
        code, value = gguf_naive.quantize(matrix, name)
        np.testing.assert_array_equal(
            _encode(matrix, schemes.get(name)).code, code)
        np.testing.assert_array_equal(_snap(matrix, schemes.get(name)), value)

  def test_k_quants_equal_loops(self):
    for name in _K:
      with self.subTest(name):
        matrix = _heavy_tails((5, 512))
        matrix[0, :256] = 0
        matrix[1] = abs(matrix[1])
        matrix[2, 256:300] = 0.25
        matrix[3, :256] = np.round(matrix[3, :256] * 64) / 64  # Ties.
        code, value = gguf_naive.quantize(matrix, name)
        np.testing.assert_array_equal(_snap(matrix, schemes.get(name)), value)
        got = _encode(matrix, schemes.get(name))
        has_step = np.asarray(got.scale) != 0
        np.testing.assert_array_equal(
            np.asarray(got.code)[has_step], code[has_step])

  @pytest.mark.slow
  def test_stacked_matrices_do_not_share_blocks(self):
    for name in _NAMES:
      with self.subTest(name):
        stack = np.stack([[_rows(name, 7, 13, 3 * i + j) for j in range(3)]
                          for i in range(2)])
        got = _snap(stack, schemes.get(name))
        for index in np.ndindex(2, 3):
          want = _snap(stack[index], schemes.get(name))
          np.testing.assert_array_equal(got[index], want)

  @pytest.mark.slow
  def test_jit_equals_eager(self):
    for name in _NAMES:
      with self.subTest(name):
        matrix, scheme = jnp.asarray(_rows(name, 8, 150)), schemes.get(name)
        np.testing.assert_array_equal(
            scheme.fake_quantize(matrix), _snap(matrix, scheme))

  def test_snap_is_decode_of_encode(self):
    for name in _NAMES:
      with self.subTest(name):
        matrix, scheme = _rows(name, 8, 150), schemes.get(name)
        codes = _encode(matrix, scheme)
        np.testing.assert_array_equal(
            jax.jit(scheme.decode)(codes.code, codes.shared),
            _snap(matrix, scheme))

  def test_values_are_fixed_points(self):
    for name in (*_PLAIN, *_GGUF):
      with self.subTest(name):
        matrix, scheme = _rows(name, 8, 150), schemes.get(name)
        once = _snap(matrix, scheme)
        np.testing.assert_array_equal(_snap(once, scheme), once)

  def test_zero_blocks_stay_zero_and_frozen(self):
    for name in _NAMES:
      with self.subTest(name):
        matrix = np.zeros_like(_rows(name, 8, 150))
        codes = _encode(matrix, schemes.get(name))
        np.testing.assert_array_equal(codes.scale, 0)
        self.assertEqual(np.all(codes.frozen), name not in _K)
        np.testing.assert_array_equal(_snap(matrix, schemes.get(name)), 0)

  def test_frozen_weights_set_the_scale(self):
    for name in _HELD:
      with self.subTest(name):
        matrix, scheme = _rows(name, 8, 150), schemes.get(name)
        codes = _encode(matrix, scheme)
        lo, hi = map(np.asarray, scheme.extent(codes.shared))
        ends = (matrix == lo) | (matrix == hi)
        if name in ('q4_0', 'q5_0'):  # Their extent excludes it.
          ends = (matrix < lo) | (matrix > hi)
        np.testing.assert_array_equal(codes.frozen, ends)
        # All others may move within the extent without changing a scale.
        rng = np.random.default_rng(1)
        moved = np.where(codes.frozen, matrix, np.where(
            rng.random(matrix.shape) < 0.3, np.where(
                rng.random(matrix.shape) < 0.5, lo, hi),
            lo + (hi - lo) * rng.random(matrix.shape, np.float32)))
        moved = np.clip(moved, *(
            np.where(codes.frozen, matrix, end) for end in (lo, hi)))
        again = _encode(moved, scheme)
        jax.tree.map(np.testing.assert_array_equal, again.shared, codes.shared)

  def test_boundaries_enclose_codes_and_separate_neighbours(self):
    for name in _NAMES:
      with self.subTest(name):
        scheme, matrix = schemes.get(name), _rows(name, 8, 150)
        codes = _encode(matrix, scheme)
        lo, hi = map(np.asarray, scheme.boundaries(codes.code, codes.shared))
        near = 1e-5 * abs(matrix).max()
        self.assertTrue(np.all((lo <= matrix + near) & (matrix - near <= hi)))
        old = np.asarray(scheme.decode(codes.code, codes.shared))
        decoding = codes.shared.stored if name.endswith('_dq') else 1
        for end, sign in ((lo, -1), (hi, 1)):
          finite = np.isfinite(end)
          inside = np.where(finite, end - sign * near, sign * 9.0)
          outside = end + sign * near
          np.testing.assert_array_equal(
              scheme.snap(inside.astype(np.float32), codes.shared), old)
          new = np.asarray(scheme.snap(outside, codes.shared))
          step = sign * (new - old) * np.sign(decoding)
          self.assertTrue(np.all(step[finite] > 0))

  @pytest.mark.medium
  def test_levels_are_the_order_of_values(self):
    for name in _NAMES:
      with self.subTest(name):
        scheme = schemes.get(name)
        matrix = _rows(name, 1, 32)
        shared = jax.tree.map(
            lambda part: part[0, 0], _encode(matrix, scheme).shared)
        x = np.linspace(-1, 1, 999, dtype=np.float32) * abs(matrix).max()
        code = scheme.encode_at(x, jax.tree.map(
            lambda part: np.full(x.shape, part), shared))
        values = np.asarray(scheme.decode(code, shared))
        level = np.asarray(scheme.level(code)).astype(int)
        order = np.sign(np.diff(level))
        np.testing.assert_array_equal(
            np.sign(np.diff(values)), order * np.sign(order.sum()))
        self.assertLen(np.unique(level), len(np.unique(values)))
        self.assertLessEqual(len(np.unique(level)), len(scheme.levels))

  def test_the_two_zeros_of_fp4_have_one_level(self):
    scheme = schemes.get('fp4')
    x = np.array([[1.0, 0.001, -0.001]], np.float32)
    codes = _encode(x, scheme)
    np.testing.assert_array_equal(codes.code, [[3, 8, 0]])
    level = scheme.level(codes.code)
    self.assertEqual(level[0, 1], level[0, 2])
    lo, hi = scheme.boundaries(codes.code, codes.shared)
    np.testing.assert_allclose(lo[0, 1:], -1 / 384, rtol=1e-6)
    np.testing.assert_allclose(hi[0, 1:], 1 / 384, rtol=1e-6)

  def test_integers_by_hand(self):
    x = np.array([[7.0, 0.5, 1.5, -2.5, -7.0, 0.51]], np.float32)
    codes = _encode(x, schemes.get('int4_g128'))
    np.testing.assert_array_equal(  # Ties to even.
        codes.code.astype(int) - 7, [[7, 0, 2, -2, -7, 1]])

  @parameterized.parameters(('int8', 127), ('int4_g128', 7))
  def test_divides_by_the_step(self, name, largest):
    # At ties, x * (1 / step), as XLA computes it, rounds to other integers.
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
  @pytest.mark.medium
  def test_at_a_fixed_scale_it_is_the_same(self, name, seed, power):
    if name in (*_GGUF, *_K):
      power = power % 24 - 12  # Scales are float16.
    matrix = _rows(name, 8, 150, seed) * np.float32(2.0**power)
    scheme = schemes.get(name)
    codes = _encode(matrix, scheme)
    np.testing.assert_array_equal(
        scheme.snap(matrix, codes.shared), _snap(matrix, scheme))

  def test_rows_that_do_not_divide(self):
    for name, want in (('q4_k', 'q5_0'), ('q6_k', 'q8_0')):
      self.assertEqual(schemes.get(name).for_columns(512).name, name)
      self.assertEqual(schemes.get(name).for_columns(576).name, want)
    for name in (*_GGUF, *_K):
      with self.assertRaisesRegex(ValueError, r'blocks of 32 .* have 100'):
        schemes.get(name).for_columns(100)
    self.assertEqual(schemes.get('nf4').for_columns(100).name, 'nf4')

  @parameterized.parameters('nf5', 'nf4_', 'int8_dq', 'NF4', 'nf4_dq_b64', 3)
  def test_unknown_name(self, name):
    with self.assertRaisesRegex(
        ValueError, r'Unknown.*fp4.*q4_k.*awq.*nf4_b128_dq'):
      schemes.get(name)

  @parameterized.parameters('nf4_b63', 'fp4_b8192_dq', 'nf4_b0')
  def test_unsupported_block(self, name):
    with self.assertRaisesRegex(ValueError, r'wanted one of \(32, 64, .*4096'):
      schemes.get(name)

  def test_calibrated_schemes_need_inputs(self):
    self.assertEqual(schemes.find('gptq_g128').method, 'gptq')
    self.assertIs(schemes.find('nf4'), schemes.get('nf4'))
    with self.assertRaisesRegex(
        ValueError, 'gptq_g128 needs calibration inputs'):
      schemes.get('gptq_g128')

  def test_names_of_variants(self):
    scheme = schemes.get('nf4_b128_dq')
    self.assertEqual((scheme.name, scheme.block, scheme.double_quant),
                     ('nf4_b128_dq', 128, True))
    self.assertIs(schemes.get(scheme), scheme)
    self.assertEqual(schemes.get('nf4_b64').block, schemes.get('nf4').block)


if __name__ == '__main__':
  absltest.main()
