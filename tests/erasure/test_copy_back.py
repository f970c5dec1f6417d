"""Copy-back: matched halves of a circuit, and the recovered share by hand."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.erasure import copy_back
from tests.circuits import small


class HalvesTest(absltest.TestCase):

  def test_random_halves_match_counts_of_nodes_and_moved_weights(self):
    config = small.config(d_ff=96)
    base = jax.tree.map(jnp.asarray, small.params(config))
    circuit = graph.empty(config)
    circuit.neurons[:, :48] = True
    # Unit j of the circuit has moved in j of its 16 rows of `gate`.
    rows = np.arange(16)[:, None] < np.arange(96) % 16  # [D, F]
    after = tree_paths.map_named(
        lambda name, w: w + 1.0 * rows[None] if name == 'layers/mlp/gate'
        else w, base)
    scores = {kind: np.zeros(shape)
              for kind, shape in graph.shapes(config).items()}
    scores['neurons'][:] = (np.arange(96) % 16) ** 2 + 1.0
    (best, *randoms), (most, *shares) = copy_back.choose_halves(
        config, base, after, circuit, scores, range(2),
        np.random.default_rng(0), count=5)
    self.assertLen(randoms, 5)
    counts = np.tile(np.arange(96) % 16, (2, 1))
    total = counts[circuit.neurons].sum()
    for half, share in zip((best, *randoms), (most, *shares)):
      np.testing.assert_array_equal(
          half.neurons.sum(1), best.neurons.sum(1))
      self.assertFalse((half.neurons & ~circuit.neurons).any())
      self.assertAlmostEqual(share, counts[half.neurons].sum() / total)
    drawn = [counts[select.matched_random(
        best, range(2), np.random.default_rng(i), among=circuit).neurons].sum()
             / total for i in range(100)]
    self.assertGreater(most, max(drawn))  # No random half has as much:
    self.assertGreater(min(shares), np.quantile(drawn, 0.9))  # the nearest.


class RecoveredShareTest(absltest.TestCase):

  def test_by_hand(self):
    facts = np.repeat(np.arange(50), 2)
    lost = np.ones(100)
    lost[:20] = 0  # 80 of 100 answers are lost, 40 come back.
    gained = np.zeros(100)
    gained[20:60] = 1
    share = copy_back.RecoveredShare(facts, resamples=500, seed=0)
    got = share(gained, lost)
    self.assertAlmostEqual(got['share'], 0.5)
    low, high = got['interval']
    self.assertBetween(low, 0.3, 0.45)
    self.assertBetween(high, 0.55, 0.7)
    self.assertEqual(share(lost, lost)['interval'], [1.0, 1.0])

  def test_questions_of_a_fact_are_resampled_together(self):
    gained, lost = np.tile([1.0, 0.0], 20), np.ones(40)
    share = copy_back.RecoveredShare(
        np.repeat(np.arange(20), 2), resamples=100, seed=0)
    self.assertEqual(share(gained, lost)['interval'], [0.5, 0.5])
    apart = copy_back.RecoveredShare(np.arange(40), resamples=100, seed=0)
    self.assertGreater(np.ptp(apart(gained, lost)['interval']), 0.2)

  def test_without_a_loss_there_is_no_share(self):
    share = copy_back.RecoveredShare(np.arange(4), resamples=100, seed=0)
    got = share(np.ones(4), np.array([1.0, -1.0, 0.0, 0.0]))
    self.assertEqual(got, {'share': None, 'interval': [None, None]})


if __name__ == '__main__':
  absltest.main()
