"""Fake quantization of whole trees, and its errors."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax import quant
from mansu_jax.quant import simulate
from mansu_jax.runtime import memory
from tests.reference import quant_naive

_LAYOUT = {
    'attn': {'q': quant.BlockLayout(memory='LDNH', out='NH', inp='D')},
    'norm': None, 'down': quant.BlockLayout(memory='FD', out='D', inp='F')}


def _params(dtype=np.float32):
  rng = np.random.default_rng(0)
  weights = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.02, dtype)
  return {
      'attn': {'q': weights(2, 6, 3, 8)}, 'norm': jnp.ones(6, dtype),
      'down': weights(10, 6)}


class FakeQuantizeTest(parameterized.TestCase):

  @parameterized.product(
      scheme=('nf4', 'fp4', 'int8', 'int4_g128'),
      dtype=('float32', 'bfloat16', 'float16'))
  @pytest.mark.medium
  def test_blocks_follow_the_torch_weight(self, scheme, dtype):
    params = _params(dtype)
    got = quant.fake_quantize(params, scheme, _LAYOUT)
    self.assertEqual(
        jax.tree.map(lambda x: (x.shape, x.dtype), got),
        jax.tree.map(lambda x: (x.shape, x.dtype), params))
    self.assertIs(got['norm'], params['norm'])
    q = np.asarray(params['attn']['q'], np.float32)
    for layer in range(2):
      torch_weight = q[layer].reshape(6, 24).T
      want = quant_naive.quantize(torch_weight, scheme)[2]
      want = want.T.reshape(6, 3, 8).astype(got['attn']['q'].dtype)
      np.testing.assert_array_equal(got['attn']['q'][layer], want)
    torch_weight = np.asarray(params['down'], np.float32).T
    want = quant_naive.quantize(torch_weight, scheme)[2].T
    np.testing.assert_array_equal(
        got['down'], want.astype(got['down'].dtype))

  def test_jit_equals_eager_and_compiles_once(self):
    params = _params()
    traced = []

    @jax.jit
    def simulate(p):
      traced.append(1)
      return quant.fake_quantize(p, 'nf4', _LAYOUT)

    for _ in range(2):
      jax.tree.map(
          np.testing.assert_array_equal, simulate(params),
          quant.fake_quantize(params, 'nf4', _LAYOUT))
    self.assertLen(traced, 1)

  def test_abstract_shapes(self):
    shapes = jax.eval_shape(_params)
    got = jax.eval_shape(
        lambda p: quant.fake_quantize(p, 'nf4', _LAYOUT), shapes)
    self.assertEqual(got, shapes)

  def test_temporaries_stay_near_the_input(self):
    leaf = jax.ShapeDtypeStruct((4, 512, 1024), jnp.float32)
    layout = quant.BlockLayout(memory='LDF', out='F', inp='D')
    program = jax.jit(
        lambda x: quant.fake_quantize(x, 'nf4', layout)).lower(leaf).compile()
    memory = program.memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 3 * leaf.size * 4)

  def test_little_memory_takes_no_float32_copy_of_a_stack(self):
    leaf = jax.ShapeDtypeStruct((16, 256, 512), jnp.bfloat16)
    layout = quant.BlockLayout(memory='LDF', out='F', inp='D')
    with memory.planned(1.0):
      lowered = simulate.fake_quantize_leaf.lower(
          leaf, scheme=quant.find('nf4').ordinary(), layout=layout)
    self.assertIn('tensor<16x256x512xbf16>', lowered.as_text())
    self.assertNotIn('tensor<16x256x512xf32>', lowered.as_text())

  def test_donated_leaves_are_reused(self):
    params = _params()
    want = quant.fake_quantize(params, 'nf4', _LAYOUT)
    got = quant.fake_quantize(params, 'nf4', _LAYOUT, donate=['attn/q'])
    jax.tree.map(np.testing.assert_array_equal, got, want)
    self.assertTrue(params['attn']['q'].is_deleted())
    self.assertFalse(params['down'].is_deleted())

  def test_other_pytrees(self):
    layout = quant.BlockLayout(memory='DF', out='F', inp='D')
    weights = jnp.ones((4, 4)) * 0.3
    got = quant.fake_quantize(
        [weights, (weights, None)], 'nf4', [layout, (None, None)])
    np.testing.assert_allclose(got[0], 0.3)
    self.assertIs(got[1][0], weights)


class RefusalTest(parameterized.TestCase):

  def _refuses(self, message, params=None, layout=None):
    for fn in (quant.fake_quantize, quant.code_grid):
      with self.assertRaisesRegex(ValueError, message):
        fn(params or _params(), 'nf4', layout or _LAYOUT)

  @parameterized.parameters(np.nan, np.inf)
  def test_non_finite_weights_name_the_leaf(self, bad):
    params = _params()
    params['attn']['q'] = params['attn']['q'].at[0, 0, 0, :3].set(bad)
    self._refuses("'attn/q' has 3 non-finite entries out of 288", params)

  def test_integer_leaf(self):
    params = _params() | {'down': jnp.ones((10, 6), jnp.int8)}
    self._refuses("'down' needs floating-point weights, got int8", params)

  def test_empty_leaf(self):
    params = _params() | {'down': jnp.ones((0, 6))}
    self._refuses(r"'down' of shape \(0, 6\) is empty", params)

  def test_wrong_number_of_axes(self):
    params = _params() | {'down': jnp.ones((2, 10, 6))}
    self._refuses(r"'down': A leaf of shape \(2, 10, 6\).*2 axes", params)

  def test_structures_differ(self):
    self._refuses("layout has no leaf 'norm'", layout={
        k: v for k, v in _LAYOUT.items() if k != 'norm'})
    self._refuses("layout has a leaf 'up'", layout=_LAYOUT | {
        'up': _LAYOUT['down']})

  def test_layout_that_is_none(self):
    self._refuses("layout of 'down' is 'DF'; wanted a quant.BlockLayout",
                  layout=_LAYOUT | {'down': 'DF'})

  @parameterized.parameters('q4_0', 'q4_k')
  def test_rows_that_gguf_cannot_cut(self, name):
    with self.assertRaisesRegex(ValueError, r"'attn/q': .*blocks of 32"):
      quant.fake_quantize(_params(), name, _LAYOUT)

  def test_unquantized_leaves_may_be_anything(self):
    params = _params() | {'norm': jnp.full(6, jnp.nan)}
    quant.fake_quantize(params, 'nf4', _LAYOUT)


if __name__ == '__main__':
  absltest.main()
