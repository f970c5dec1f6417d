"""Statistics of weight changes against NumPy."""

from absl.testing import absltest
import jax.numpy as jnp
import numpy as np

from mansu_jax.eval import weight_change


def _models():
  """Params before and after: one matrix moved in layer 1, half of a norm."""
  rng = np.random.default_rng(0)
  before = {'embed': rng.normal(size=(11, 4)), 'final_norm': np.ones(4),
            'layers': {'w': rng.normal(size=(3, 4, 5)),
                       'v': rng.normal(size=(3, 4, 2, 2)),
                       'norm': np.ones((3, 4))}}
  after = {**before, 'final_norm': np.array([1.5, 1, 1, 1]),
           'layers': {**before['layers'], 'w': before['layers']['w'].copy()}}
  after['layers']['w'][1, :, 2] *= 2
  cast = lambda tree: {k: cast(v) if isinstance(v, dict) else jnp.float32(v)
                       for k, v in tree.items()}
  return cast(before), cast(after)


class CompareTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.before, self.after = _models()
    self.changes = weight_change.compare(self.before, self.after)
    self.found = weight_change.describe(self.changes)

  def test_changes_by_layer_equal_numpy(self):
    before, after = (np.asarray(p['layers']['w'], np.float64)
                     for p in (self.before, self.after))
    for layer, got in enumerate(self.found['leaves']['layers/w']['by_layer']):
      b, a = before[layer].ravel(), after[layer].ravel()
      self.assertEqual(got['size'], 20)
      self.assertAlmostEqual(got['moved'], np.mean(b != a))
      norm = np.linalg.norm
      self.assertAlmostEqual(got['relative'], norm(a - b) / norm(b), places=6)
      self.assertAlmostEqual(
          got['cosine'], a @ b / norm(a) / norm(b), places=6)

  def test_totals_add_up(self):
    total = self.found['total']
    self.assertEqual(total['size'], 44 + 4 + 60 + 48 + 12)
    self.assertAlmostEqual(total['moved'], 5 / 168)
    moved = [entry['moved'] for entry in self.found['layers']]
    self.assertEqual(moved, [0, 4 / 40, 0])
    self.assertEqual(self.found['layers'][0]['size'], 40)
    self.assertNotIn('by_layer', self.found['leaves']['embed'])

  def test_unmoved_weights_are_bit_equal(self):
    for name in ('embed', 'layers/v', 'layers/norm'):
      leaf = self.found['leaves'][name]
      self.assertEqual((leaf['moved'], leaf['relative']), (0, 0))

  def test_a_leaf_of_zeros_has_no_norm_to_compare_with(self):
    zeros = {'w': jnp.zeros((2, 3))}
    got = weight_change.describe(weight_change.compare(zeros, zeros))
    self.assertIsNone(got['total']['relative'])
    self.assertIsNone(got['total']['cosine'])
    self.assertEmpty(got['layers'])


if __name__ == '__main__':
  absltest.main()
