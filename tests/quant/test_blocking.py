"""Blocks along an axis in memory are the blocks of the torch matrix."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax import quant
from mansu_jax.quant import blocking
from mansu_jax.runtime import memory

_NAMES = (*quant.SCHEMES, 'nf4_dq', 'fp4_b128_dq', 'nf4_b4096')
_LAYOUTS = {
    'up': (quant.BlockLayout(memory='LDF', out='F', inp='D'), (2, 256, 5)),
    'q': (quant.BlockLayout(memory='LDNH', out='NH', inp='D'), (2, 256, 2, 3)),
    'o': (quant.BlockLayout(memory='LNHD', out='D', inp='NH'), (2, 4, 64, 3)),
    'torch': (quant.BlockLayout(memory='FD', out='F', inp='D'), (3, 256)),
    'spanning': (
        quant.BlockLayout(memory='LDF', out='F', inp='D'), (2, 96, 3))}
_KINDS = ('nf4', 'int4_g32', 'q4_k', 'nf4_dq')
_CASES = [*itertools.product(('nf4',), _LAYOUTS), ('int4_g32', 'up'),
          ('nf4_dq', 'spanning'), ('q4_k', 'up'), ('q4_k', 'spanning')]
_MORE = [('int4_g32', 'spanning'), ('nf4_dq', 'up'), ('q4_k', 'q'),
         ('q4_k', 'o'), ('q4_k', 'torch'), *itertools.product(
             sorted({*_NAMES} - {*_KINDS}), ('up', 'spanning'))]


class BlockingTest(parameterized.TestCase):

  @parameterized.parameters(*_CASES)
  @pytest.mark.medium
  def test_equals_the_rows(self, name, which):
    self.check_equals_the_rows(name, which)

  @parameterized.parameters(*_MORE)
  @pytest.mark.slow
  def test_equals_the_rows_in_all_cases(self, name, which):
    self.check_equals_the_rows(name, which)

  def check_equals_the_rows(self, name, which):
    layout, shape = _LAYOUTS[which]
    rng = np.random.default_rng(0)
    leaf = jnp.asarray(rng.standard_t(3, shape) * 0.02, jnp.float32)
    leaf = leaf.at[..., 0].set(0)
    scheme = quant.get(name)
    *_, columns = quant.to_rows(leaf, layout).shape
    rows, rule = quant.to_rows(leaf, layout), scheme.for_columns(columns)
    want, wanted = jax.tree.map(
        lambda x: quant.from_rows(x, layout, shape),
        jax.jit(lambda x: (rule.fake_quantize(x), rule.encode(x)))(rows))
    got = quant.fake_quantize({'w': leaf}, name, {'w': layout})['w']
    np.testing.assert_array_equal(got, want)
    traced, codes = jax.jit(lambda x: (
        blocking.fake_quantize(x, scheme, layout),
        blocking.encode(x, scheme, layout)))(leaf)
    np.testing.assert_array_equal(traced, want)
    if wanted.shared.tail is not None and codes.shared.tail is None:
      self.assertFalse(np.any(wanted.shared.tail))
    jax.tree.map(np.testing.assert_array_equal, codes, wanted)
    with memory.planned(1.0):  # One matrix at a time.
      alone = jax.jit(lambda x: (
          blocking.fake_quantize(x, scheme, layout),
          blocking.encode(x, scheme, layout)))(leaf)
    jax.tree.map(np.testing.assert_array_equal, alone, (traced, codes))

  @pytest.mark.medium
  def test_little_memory_takes_one_matrix_at_a_time(self):
    layout = quant.BlockLayout(memory='LFD', out='D', inp='F')
    loops = []
    for size in (1e12, 1.0):
      with memory.planned(size):
        loops.append('scan' in str(jax.make_jaxpr(
            lambda x: blocking.fake_quantize(x, quant.get('nf4'), layout))(
                jnp.ones((3, 64, 64)))))
    self.assertEqual(loops, [False, True])

  @parameterized.parameters('nf4', 'fp4')
  def test_extreme_scales_keep_their_bits(self, name):
    layout = quant.BlockLayout(memory='DF', out='F', inp='D')
    rng = np.random.default_rng(1)
    sizes = np.repeat(10.0 ** np.array([-38, -40, -30, 0, 37]), 64)[:, None]
    leaf = (rng.normal(size=(320, 4)) * sizes).astype(np.float32)
    scheme = quant.get(name)
    want = scheme.fake_quantize(jnp.asarray(leaf.T)).T
    got = quant.fake_quantize({'w': leaf}, name, {'w': layout})['w']
    np.testing.assert_array_equal(
        np.asarray(got).view(np.int32), np.asarray(want).view(np.int32))
    self.assertTrue(np.any(np.asarray(got)[:64].view(np.int32) != 0))
    # The arithmetic for ordinary scales flushes them to zero.
    plain = blocking.fake_quantize(leaf, scheme.ordinary(), layout)
    self.assertFalse(np.any(np.asarray(plain)[:64].view(np.int32) & 0x7FFFFFFF))

  @parameterized.parameters('nf4', 'fp4', 'int8', 'int4_g128', 'q4_0', 'q8_0')
  def test_no_temporary_if_blocks_lie_within_rows(self, name):
    leaf = jax.ShapeDtypeStruct((2, 512, 1024), jnp.float32)
    layout = quant.BlockLayout(memory='LDF', out='F', inp='D')
    scheme = quant.get(name).ordinary()
    program = jax.jit(
        lambda x: blocking.fake_quantize(x, scheme, layout)
    ).lower(leaf).compile()
    # Room for the scales of the blocks.
    self.assertLess(
        program.memory_analysis().temp_size_in_bytes, leaf.size * 4 / 4)
    self.assertNotIn('transpose', program.as_text())


if __name__ == '__main__':
  absltest.main()
