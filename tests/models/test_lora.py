"""Adapters add their product to every matrix, a layer at a time."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models import lora
from tests.models import tiny

_CONFIG = tiny.config()
_SCALE = 0.5


def _adapters(seed=0, rank=3):
  """Adapters of which both factors are random."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
      lambda x: 0.1 * rng.normal(size=x.shape).astype(np.float32),
      lora.shapes(tiny.params(_CONFIG), rank))


def _naive_merge(params, adapters):
  """Each layer's matrix plus scale times the product, in float64 loops."""
  flat, found = map(tree_paths.flatten, (jax.device_get(params), adapters))
  for name in layout.MATRICES:
    flat[name] = np.stack([
        w + _SCALE * (a.astype(float) @ b.astype(float)).reshape(w.shape)
        for w, a, b in zip(flat[name], found[f'{name}/a'], found[f'{name}/b'])
    ]).astype(np.float32)
  return tree_paths.unflatten(flat)


class LoraTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params, cls.ids = tiny.params(_CONFIG), tiny.tokens(_CONFIG)

  def test_shapes_are_of_the_products_of_axes(self):
    got = {name: x.shape for name, x in tree_paths.flatten(
        lora.shapes(decoder.abstract(_CONFIG), 5)).items()}
    self.assertLen(got, 2 * len(layout.MATRICES))
    self.assertEqual(got['layers/attn/q/a'], (3, 24, 5))
    self.assertEqual(got['layers/attn/k/b'], (3, 5, 2 * 6))
    self.assertEqual(got['layers/attn/o/a'], (3, 4 * 6, 5))
    self.assertEqual(got['layers/mlp/down/b'], (3, 5, 24))

  def test_new_adapters_change_nothing(self):
    adapters = lora.init(self.params, 4, seed=1)
    for name, leaf in tree_paths.flatten(adapters).items():
      self.assertEqual(bool(leaf.any()), name.endswith('/a'), name)
    merged = lora.merge(self.params, adapters, _SCALE)
    jax.tree.map(np.testing.assert_array_equal, merged, self.params)
    np.testing.assert_allclose(
        tiny.logits(_CONFIG, self.params, self.ids),
        jax.jit(self._hidden)(adapters), atol=1e-5)

  def test_the_first_factor_is_drawn_by_the_seed(self):
    first, same, other = (
        tree_paths.flatten(lora.init(self.params, 4, seed=seed))
        for seed in (1, 1, 2))
    name = 'layers/mlp/down/a'
    np.testing.assert_array_equal(first[name], same[name])
    self.assertFalse((first[name] == other[name]).any())
    self.assertAlmostEqual(float(first[name].std() * 40 ** 0.5), 1, delta=0.1)

  def _hidden(self, adapters, **options):
    return decoder.unembed(_CONFIG, self.params, decoder.forward(
        _CONFIG, self.params, self.ids, adapters=adapters,
        adapter_scale=_SCALE, **options))

  @parameterized.parameters(False, True)
  def test_the_adapted_model_is_the_merged_one(self, remat):
    adapters = _adapters()
    want = _naive_merge(self.params, adapters)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        lora.merge(self.params, adapters, _SCALE), want)
    got = jax.jit(lambda a: self._hidden(a, remat=remat))(adapters)
    np.testing.assert_allclose(
        got, tiny.logits(_CONFIG, want, self.ids), atol=2e-4)
    self.assertGreater(np.abs(got - tiny.logits(
        _CONFIG, self.params, self.ids)).max(), 0.1)

  def test_a_bfloat16_base_is_adapted_in_float32_and_rounded_once(self):
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), self.params)
    exact, rounded = (
        tree_paths.flatten(lora.merge(params, _adapters(), _SCALE, dtype))
        for dtype in ('float32', None))
    for name, leaf in exact.items():
      self.assertEqual(leaf.dtype, jnp.float32 if name in layout.MATRICES
                       else jnp.bfloat16, name)
      self.assertEqual(rounded[name].dtype, jnp.bfloat16, name)
      np.testing.assert_array_equal(rounded[name], leaf.astype(jnp.bfloat16))

  def test_packed_rows_are_those_of_the_merged_model(self):
    adapters, rows = _adapters(), dict(
        positions=np.tile([0, 1, 2, 3, 0, 1], (4, 1)).astype(np.int32),
        segments=np.tile([0] * 4 + [1] * 2, (4, 1)).astype(np.int32))
    tokens = tiny.tokens(_CONFIG, 4, 6)
    forward = jax.jit(lambda params, **options: decoder.forward(
        _CONFIG, params, tokens, **rows, **options))
    got = forward(self.params, adapters=adapters, adapter_scale=_SCALE)
    np.testing.assert_allclose(
        got, forward(lora.merge(self.params, adapters, _SCALE)), atol=1e-5)
    self.assertGreater(np.abs(got - forward(self.params)).max(), 0.1)

  def test_gradients_are_those_of_the_merged_matrices(self):
    adapters = _adapters()
    merged = _naive_merge(self.params, adapters)
    weigh = np.random.default_rng(5).normal(
        size=(*self.ids.shape, _CONFIG.vocab_size)).astype(np.float32)
    full = tree_paths.flatten(jax.jit(jax.grad(lambda params: jnp.sum(
        weigh * tiny.logits(_CONFIG, params, self.ids))))(merged))
    got = tree_paths.flatten(jax.jit(jax.grad(lambda a: jnp.sum(
        weigh * self._hidden(a, remat=True))))(adapters))
    found = tree_paths.flatten(adapters)
    for name in layout.MATRICES:
      a, b = found[f'{name}/a'], found[f'{name}/b']
      grad = np.asarray(full[name]).reshape(
          a.shape[0], a.shape[1], b.shape[2])
      for end, want in (('a', _SCALE * grad @ b.swapaxes(1, 2)),
                        ('b', _SCALE * a.swapaxes(1, 2) @ grad)):
        np.testing.assert_allclose(
            got[f'{name}/{end}'], want, atol=1e-3 * np.abs(want).max(),
            err_msg=f'{name}/{end}')


if __name__ == '__main__':
  absltest.main()
