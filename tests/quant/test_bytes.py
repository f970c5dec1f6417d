"""Bytes of bitsandbytes and llama.cpp: accepted arguments and edge cases."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax import quant


def _rows(shape=(6, 64)):
  return jnp.asarray(
      np.random.default_rng(0).normal(size=shape).astype(np.float32))


class PackTest(parameterized.TestCase):

  @parameterized.parameters('nf4', 'fp4_b32', 'nf4_dq', 'nf4_b4096_dq')
  @pytest.mark.medium
  def test_a_name_equals_its_scheme(self, name):
    rows = _rows()
    got = quant.packing.pack(rows, name)
    jax.tree.map(np.testing.assert_array_equal, got,
                 quant.packing.pack(rows, quant.get(name)))
    np.testing.assert_array_equal(
        quant.packing.unpack(got, name, rows.shape),
        quant.get(name).fake_quantize(rows))

  def test_with_64_bit_types_enabled(self):
    want = quant.packing.pack(_rows(), 'nf4')
    with jax.enable_x64(True):
      got = quant.packing.pack(_rows(), 'nf4')
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_stacks_by_vmap(self):
    stack = _rows((3, 4, 128))
    with self.assertRaisesRegex(ValueError, r'\(3, 4, 128\).*jax.vmap'):
      quant.packing.pack(stack, 'nf4')
    got = jax.vmap(lambda rows: quant.packing.pack(rows, 'nf4'))(stack)
    for i in range(3):
      want = quant.packing.pack(stack[i], 'nf4')
      np.testing.assert_array_equal(got.packed[i], want.packed)
      np.testing.assert_array_equal(got.absmax[i], want.absmax)

  def test_subnormal_partial_blocks_are_not_zeros(self):
    rows = jnp.full((1, 1), 1e-42, jnp.float32)
    got = quant.packing.pack(rows, 'nf4').absmax
    np.testing.assert_array_equal(
        np.asarray(got).view(np.int32), np.asarray(rows[0]).view(np.int32))
    zeros = quant.packing.pack(rows * 0, 'nf4').absmax
    np.testing.assert_array_equal(zeros, np.float32([1e-38]))

  def test_refusals(self):
    with self.assertRaisesRegex(ValueError, 'int8 is not a 4-bit code book'):
      quant.packing.pack(_rows(), 'int8')
    with self.assertRaisesRegex(ValueError, r'shape \(64,\); wanted a matrix'):
      quant.packing.pack(_rows()[0], 'nf4')
    with self.assertRaisesRegex(ValueError, 'floating-point.*int32'):
      quant.packing.pack(jnp.ones((2, 2), jnp.int32), 'nf4')
    with self.assertRaisesRegex(ValueError, '1 non-finite'):
      quant.packing.pack(_rows().at[1, 2].set(jnp.nan), 'nf4')


class GgufTest(parameterized.TestCase):

  def test_names_and_refusals(self):
    rows = _rows()
    np.testing.assert_array_equal(
        quant.gguf_bytes.to_bytes(rows, 'q4_0'),
        quant.gguf_bytes.to_bytes(rows, quant.get('q4_0')))
    with self.assertRaisesRegex(ValueError, 'nf4 is not a GGUF format'):
      quant.gguf_bytes.to_bytes(rows, 'nf4')
    with self.assertRaisesRegex(ValueError, '1 non-finite'):
      quant.gguf_bytes.to_bytes(rows.at[0, 0].set(jnp.inf), 'q4_0')


class CheckTest(absltest.TestCase):

  def test_a_name_equals_its_scheme(self):
    layout = {'w': quant.BlockLayout(memory='DF', out='F', inp='D')}
    quant.check_quantizable({'w': jnp.ones((32, 4))}, layout, 'q4_0')
    with self.assertRaisesRegex(ValueError, "'w': q4_0 has blocks"):
      quant.check_quantizable({'w': jnp.ones((33, 4))}, layout, 'q4_0')


if __name__ == '__main__':
  absltest.main()
