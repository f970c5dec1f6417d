"""Selection from other pairs: by hand, at its limits, and against chance."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from mansu_jax.circuits import stability


def _top(size):
  """Selects the `size` largest |score|."""
  def select(means):
    mask = np.zeros(means.size, bool)
    mask[np.argsort(-np.abs(means), kind='stable')[:size]] = True
    return mask
  return select


def _sums(noise, groups=12, n=200, signal=0, seed=0):
  """A signal that all groups share, and noise of each; three pairs a group."""
  rng = np.random.default_rng((1, seed))
  signal = np.random.default_rng((0, signal)).normal(size=n)
  rows = signal + noise * rng.normal(size=(3 * groups, n))
  return stability.sum_by_group(rows, np.arange(3 * groups) % groups, groups)


class GroupsTest(parameterized.TestCase):

  def test_each_fact_is_one_group_by_default(self):
    groups = stability.group_facts(['b', 'a', 'b', 'c'])
    self.assertCountEqual(groups, 'abc')
    self.assertCountEqual(groups.values(), range(3))

  @parameterized.parameters(4, 7, 30)
  def test_groups_are_even_and_the_same_in_any_order(self, most):
    facts = [str(i) for i in range(23)]
    groups = stability.group_facts(facts, most, seed=3)
    sizes = np.bincount(list(groups.values()))
    self.assertLen(sizes, min(most, 23))
    self.assertLessEqual(np.ptp(sizes), 1)
    self.assertEqual(
        groups, stability.group_facts(facts[::-1] + facts, most, seed=3))
    if most < 23:
      self.assertNotEqual(groups, stability.group_facts(facts, most, seed=4))

  def test_means_weigh_groups_by_their_pairs(self):
    scores = np.array([[1.0, 2], [3, 4], [5, 12]])
    sums = stability.sum_by_group(scores, np.array([0, 0, 2]), 3)
    np.testing.assert_array_equal(sums.counts, [2, 0, 1])
    np.testing.assert_allclose(sums.mean(), scores.mean(0))
    np.testing.assert_allclose(
        sums.mean(np.array([1, 5, 2])), (scores[0] + scores[1]
                                         + 2 * scores[2]) / 4)


class OverlapTest(absltest.TestCase):

  def test_by_hand(self):
    one, other = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0]], bool)
    self.assertEqual(stability.overlap(one, other), (1 / 5, 1 / 4))
    self.assertEqual(stability.overlap(one, one), (1, 1))
    self.assertEqual(stability.overlap(one & False, other), (0, 0))

  def test_correlations_are_spearmans(self):
    one, other = np.random.default_rng(0).normal(size=(2, 50))
    got = stability.correlations(one, other)
    np.testing.assert_allclose(got, [
        stats.spearmanr(one, other).statistic,
        stats.spearmanr(np.abs(one), np.abs(other)).statistic])
    self.assertEqual(stability.correlations(one, 0 * one), (0, 0))
    np.testing.assert_allclose(stability.correlations(one, -one), (-1, 1))


class ResampledTest(absltest.TestCase):

  def test_equal_facts_select_the_same_circuit(self):
    sums, select = _sums(0.0), _top(20)
    reference = select(sums.mean())
    got, times = stability.resampled(sums, select, reference, 30, seed=0)
    self.assertEqual(got['kept'], {'mean': 1, 'interval': [1, 1]})
    self.assertEqual((got['firm'], got['draws']), (1, 30))
    np.testing.assert_array_equal(times, reference)

  def test_noise_lowers_the_overlap_of_resamples(self):
    sums, select = _sums(3.0), _top(20)
    reference = select(sums.mean())
    got, times = stability.resampled(sums, select, reference, 200, seed=0)
    mean, (low, high) = got['kept']['mean'], got['kept']['interval']
    self.assertBetween(mean, low, high)
    self.assertLess(high, 1)
    self.assertAlmostEqual(times.sum(), 20)  # Each draw selects 20.
    self.assertAlmostEqual(times[reference].mean(), mean)
    self.assertAlmostEqual(
        got['firm'], (times[reference] >= 0.95).mean())
    self.assertLess(got['jaccard']['mean'], mean)

  def test_groups_are_drawn_with_replacement(self):
    seen = []
    stability.resampled(
        stability.Sums(np.eye(6, dtype=np.float32), np.ones(6)),
        lambda means: seen.append(means) or means > 0, np.ones(6, bool), 50, 0)
    drawn = np.array(seen) * 6
    np.testing.assert_allclose(drawn.sum(1), 6)
    self.assertGreater(drawn.max(), 1.5)  # Some group twice,
    self.assertAlmostEqual(  # and (5 / 6)^6 of them not at all.
        (drawn < 0.5).mean(), (5 / 6)**6, delta=0.06)


class HalvesTest(absltest.TestCase):

  def test_halves_are_disjoint_and_even(self):
    firsts = stability.halvings(7, 40, seed=0)
    np.testing.assert_array_equal(firsts.sum(1), 3)
    self.assertGreater(len(np.unique(firsts, axis=0)), 20)

  def test_halves_share_less_than_resamples(self):
    sums, select = _sums(3.0), _top(20)
    reference = select(sums.mean())
    again, _ = stability.resampled(sums, select, reference, 100, seed=0)
    got = stability.halves(
        sums, select, stability.halvings(12, 40, seed=0))
    self.assertLess(got['kept']['mean'], again['kept']['mean'] - 0.05)
    self.assertBetween(got['spearman']['mean'], 0.1, 0.9)

  def test_halves_share_no_groups(self):
    totals = np.zeros((4, 4), np.float32)
    np.fill_diagonal(totals, 1)  # Group i scores only candidate i.
    got = stability.halves(
        stability.Sums(totals, np.ones(4)), lambda means: means > 0,
        stability.halvings(4, 10, seed=0))
    self.assertEqual(got['jaccard'], {'mean': 0, 'interval': [0, 0]})
    self.assertEqual(got['spearman']['mean'], -1)


class PhrasingsTest(absltest.TestCase):

  def test_equal_scores_overlap_completely(self):
    sums = _sums(2.0)
    got = stability.compare_phrasings(stability.Phrasings(sums, sums), _top(20))
    for name in ('jaccard', 'kept', 'spearman', 'spearman_absolute'):
      self.assertAlmostEqual(got[name]['value'], 1)
      np.testing.assert_allclose(got[name]['interval'], [1, 1])

  def test_jackknife_interval_of_a_mean_is_students(self):
    """`kept` here is the mean of the groups' own zeros and ones."""
    values = np.array([1, 0, 1, 1, 0, 1, 1, 1, 0, 1.0])
    sums = stability.Sums(np.eye(10, dtype=np.float32), np.ones(10))
    select = lambda means: (means > 0) & (select.own | (values > 0))

    def own(means):  # Called for one side, then for the other.
      select.own = not getattr(select, 'own', False)
      return select(means)

    got = stability.compare_phrasings(
        stability.Phrasings(sums, sums), own)['kept']
    half = stats.t.ppf(0.975, 9) * stats.sem(values)
    self.assertAlmostEqual(got['value'], 0.7)
    np.testing.assert_allclose(
        got['interval'], [0.7 - half, min(0.7 + half, 1)])

  def test_the_interval_is_as_wide_as_overlaps_vary(self):
    """Over data sets; leaving out one group they are 2.3 times as wide."""
    values, widths = [], []
    for seed in range(0, 60, 2):
      phrasings = stability.Phrasings(
          _sums(3.0, seed=seed), _sums(3.0, seed=seed + 1))
      got = stability.compare_phrasings(phrasings, _top(20))['kept']
      values.append(got['value'])
      widths.append(np.subtract(*got['interval'][::-1]))
    half = stats.t.ppf(0.975, 11) * np.std(values)
    self.assertBetween(np.mean(widths) / 2 / half, 0.7, 1.6)

  def test_the_interval_holds_the_value_where_selection_is_noisy(self):
    phrasings = stability.Phrasings(_sums(3.0), _sums(4.0, seed=1))
    got = stability.compare_phrasings(phrasings, _top(20))
    for entry in got.values():
      low, high = entry['interval']
      self.assertTrue(low <= entry['value'] <= high)
      self.assertGreater(high - low, 0.01)

  def test_unrelated_phrasings_overlap_little(self):
    phrasings = stability.Phrasings(_sums(0.5), _sums(0.5, signal=1))
    got = stability.compare_phrasings(phrasings, _top(20))
    self.assertLess(got['kept']['value'], 0.3)
    self.assertLess(abs(got['spearman']['value']), 0.2)


class RandomOverlapTest(absltest.TestCase):

  def test_random_overlap_equals_the_density(self):
    reference = np.arange(400) < 100
    draw = lambda rng: rng.permutation(reference)
    got = stability.random_overlap(reference, draw, 300, seed=0)
    self.assertAlmostEqual(got['kept']['mean'], 0.25, delta=0.01)
    self.assertAlmostEqual(
        got['jaccard']['mean'], 0.25 / 1.75, delta=0.01)
    self.assertEqual(got['draws'], 300)


if __name__ == '__main__':
  absltest.main()
