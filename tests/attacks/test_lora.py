"""Adapters: what they change, and that merging them is exact."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.attacks import lora
from mansu_jax.models import decoder
from mansu_jax.models import layout
from tests.models import tiny

_CONFIG = tiny.config(tie_embeddings=False)


def _moved(adapters):
  return jax.tree.map(
      lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape),
      adapters)


class LoraTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.params = jax.tree.map(jnp.asarray, tiny.params(_CONFIG))
    self.adapters = lora.init(self.params, jax.random.key(0))

  def test_new_adapters_change_nothing(self):
    jax.tree.map(np.testing.assert_array_equal,
                 lora.merge(self.params, self.adapters), self.params)

  def test_every_matrix_of_every_layer_has_adapters_of_low_rank(self):
    flat = tree_paths.flatten(self.params)
    for name in layout.MATRICES:
      own = tree_paths.flatten(self.adapters)
      a, b = (own[f'{name.removeprefix("layers/")}/{x}'] for x in 'ab')
      self.assertEqual(a.shape[0], _CONFIG.num_layers)
      self.assertEqual((a.shape[2], b.shape[1]), (lora.RANK, lora.RANK))
      self.assertEqual(a.shape[1] * b.shape[2], flat[name][0].size)

  def test_merge_adds_the_product_and_nothing_else(self):
    adapters = _moved(self.adapters)
    merged = tree_paths.flatten(lora.merge(self.params, adapters))
    own = tree_paths.flatten(adapters)
    for name, before in tree_paths.flatten(self.params).items():
      if name not in layout.MATRICES:
        np.testing.assert_array_equal(merged[name], before)
        continue
      short = name.removeprefix('layers/')
      a, b = np.asarray(own[f'{short}/a']), np.asarray(own[f'{short}/b'])
      for layer in range(_CONFIG.num_layers):  # alpha / rank is 2.
        np.testing.assert_allclose(
            merged[name][layer], before[layer] + 2 * (
                a[layer] @ b[layer]).reshape(before[layer].shape), atol=1e-5)

  def test_forward_equals_the_merged_model(self):
    tokens = tiny.tokens(_CONFIG, 3, 8)
    positions = np.tile([0, 1, 2, 3, 4, 0, 1, 2], (3, 1)).astype(np.int32)
    segments = np.tile([0] * 5 + [1] * 3, (3, 1)).astype(np.int32)
    adapters = _moved(self.adapters)
    adapted, forward = (
        jax.jit(fn, static_argnums=0) for fn in (lora.forward, decoder.forward))
    got = adapted(
        _CONFIG, self.params, adapters, tokens, positions, segments)
    merged = lora.merge(self.params, adapters)
    np.testing.assert_allclose(got, forward(
        _CONFIG, merged, tokens, positions=positions, segments=segments),
                               atol=1e-5)
    plain = forward(
        _CONFIG, self.params, tokens, positions=positions, segments=segments)
    self.assertGreater(np.abs(got - plain).max(), 0.1)

  def test_storage_dtype_is_kept(self):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), self.params)
    merged = lora.merge(half, _moved(self.adapters))
    self.assertEqual(
        {x.dtype for x in jax.tree.leaves(merged)}, {jnp.dtype('bfloat16')})


if __name__ == '__main__':
  absltest.main()
