"""llama.cpp's 8-bit activations, against loops and the gguf package."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.deployment import activations
from mansu_jax.models import decoder
from tests.models import tiny


def _activations(columns):
  """Rows with an outlier, a block of zeros, and a single non-zero value."""
  x = np.random.default_rng(0).normal(size=(5, columns)).astype(np.float32)
  x[1, 7] = 300
  x[2, :256] = 0
  x[3, :256] = 0
  x[3, 9] = -0.25
  return x


class RoundingTest(parameterized.TestCase):

  def test_q8_0_equals_the_gguf_package(self):
    x = _activations(512)
    kind = gguf.GGMLQuantizationType.Q8_0
    want = gguf.dequantize(gguf.quantize(x, kind), kind)
    np.testing.assert_array_equal(jax.jit(activations.round_q8_0)(x), want)

  def test_q8_k_equals_loops(self):
    x = _activations(512)
    want = np.zeros_like(x)
    for i in range(5):
      for start in (0, 256):
        block = x[i, start:start + 256]
        largest = max(block, key=abs)
        for j, value in enumerate(block):
          if largest:
            code = min(127, round(float(value) * -127 / float(largest)))
            want[i, start + j] = code * float(largest) / -127
    np.testing.assert_allclose(
        jax.jit(activations.round_q8_k)(x), want, rtol=1e-6)

  @parameterized.parameters(
      ('F32', None), ('BF16', None), ('Q4_0', 'round_q8_0'),
      ('Q5_0', 'round_q8_0'), ('Q4_K', 'round_q8_k'), ('Q6_K', 'round_q8_k'))
  def test_rounding_follows_the_type_of_the_weights(self, weights, want):
    self.assertIs(activations.rounding_for(weights),
                  want and getattr(activations, want))


class WithRoundedInputsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.cfg = tiny.config(
        d_model=32, d_head=8, num_heads=6, num_kv_heads=2, d_ff=40,
        num_layers=2)
    self.params = tiny.params(self.cfg, scale=0.1)
    self.tokens = tiny.tokens(self.cfg)

  def _run(self, rounding=None):
    kinds = {32: 'D', 48: 'NH', 40: 'F'}
    forward = lambda params, tokens: decoder.forward(
        self.cfg, params, tokens)
    if rounding is not None:
      forward = activations.with_rounded_inputs(forward, kinds)
    with mock.patch.object(activations, 'rounding_for', rounding):
      return jax.jit(forward)(self.params, self.tokens)

  @pytest.mark.slow
  def test_rounds_the_inputs_of_every_matrix(self):
    def zeros_before(kind):
      return lambda requested: (
          jnp.zeros_like if requested == kind else None)
    plain = self._run()
    np.testing.assert_array_equal(self._run(lambda kind: None), plain)
    without = lambda *names: jax.tree_util.tree_map_with_path(
        lambda path, x: x * 0 if path[-1].key in names else x, self.params)
    for kind, names in (
        ('D', ['q', 'k', 'v', 'gate', 'up']), ('NH', ['o']), ('F', ['down'])):
      want = decoder.forward(self.cfg, without(*names), self.tokens)
      got = self._run(zeros_before(kind))
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
      self.assertGreater(np.abs(got - plain).max(), 1e-2)

  def test_heads_are_rounded_as_one_row(self):
    found = []
    def rounding(kind):
      def record_shape(x):
        found.append((kind, x.shape[-1], x.ndim))
        return x
      return record_shape
    self._run(rounding)
    self.assertEqual(set(found), {('D', 32, 3), ('NH', 48, 3), ('F', 40, 3)})


if __name__ == '__main__':
  absltest.main()
