"""Means over seeds, and the coverage of their intervals."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from scipy import stats

from mansu_jax.statistics import accuracy
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import gaps
from mansu_jax.statistics import seeds

_FACTS = [f'fact/{i // 5}' for i in range(300)]
_FORMS = [f'form {i % 5}' for i in range(300)]
_PRECISIONS = ('fp', 'nf4')


def _answers(seed):
  """Answers of both models at two precisions, and ignorance."""
  rng = np.random.default_rng(seed)
  right = {p: np.stack([rng.random(300) < 0.95, rng.random(300) < 0.5], 1)
           for p in _PRECISIONS}
  return right, rng.choice([0, 0.5, 1], 300, p=[0.6, 0.3, 0.1])


def _asked(right, ignorance, rows=slice(None)):
  return seeds.Asked(
      right[rows], np.stack([ignorance, ignorance], 1)[rows], _FACTS[rows],
      _FORMS[rows])


class OneSeedTest(parameterized.TestCase):
  """One seed has the value and the bounds of the other modules."""

  def _assert_same(self, got, want):
    self.assertEqual(got.by_seed, (got.value,))
    self.assertTrue(math.isnan(got.deviation))
    for field in ('value', 'n', 'facts', 'lower', 'upper'):
      self.assertAlmostEqual(getattr(got, field), getattr(want, field))
    np.testing.assert_allclose(got.interval, want.interval)

  def test_known_share(self):
    right, ignorance = _answers(0)
    self._assert_same(
        seeds.known_share([_asked(right['fp'], ignorance)]),
        forgetting.known_share(*right['fp'].T, ignorance, _FACTS, _FORMS))

  def test_known_share_without_a_right_answer(self):
    base, none = np.ones(300, bool), np.zeros(300)
    self._assert_same(
        seeds.known_share([_asked(np.stack([base, none], 1), none)]),
        forgetting.known_share(base, none, none, _FACTS, _FORMS))

  @parameterized.parameters(1.0, 0.01)
  def test_known_gap(self, changed):
    right, ignorance = _answers(1)
    few = np.arange(300) < 300 * changed
    right['nf4'] = np.where(few[:, None], right['nf4'], right['fp'])
    self._assert_same(
        seeds.known_gap([_asked(right['nf4'], ignorance)],
                        [_asked(right['fp'], ignorance)]),
        forgetting.known_gap(*right['nf4'].T, *right['fp'].T, ignorance,
                             _FACTS, _FORMS))

  def test_share_and_mean_difference(self):
    right, _ = _answers(2)
    base, unlearned = right['fp'].T
    self._assert_same(
        seeds.share([base], [_FACTS]),
        accuracy.accuracy_with_interval(base, _FACTS))
    self._assert_same(
        seeds.mean_difference([1.0 * base - unlearned], [_FACTS], largest=1.0),
        gaps.paired_drop(base, unlearned, _FACTS))


class SeveralSeedsTest(absltest.TestCase):

  def test_the_value_is_the_mean_of_the_seeds(self):
    rows = [slice(0, 300), slice(50, 300), slice(0, 100)]
    asked = {p: [] for p in _PRECISIONS}
    alone = []
    for seed, some in enumerate(rows):
      right, ignorance = _answers(seed)
      for p in _PRECISIONS:
        asked[p].append(_asked(right[p], ignorance, some))
      alone.append(seeds.known_gap([asked['nf4'][-1]], [asked['fp'][-1]]))
    got = seeds.known_gap(asked['nf4'], asked['fp'])
    values = [one.value for one in alone]
    np.testing.assert_allclose(got.by_seed, values)
    self.assertAlmostEqual(got.value, np.mean(values))
    self.assertAlmostEqual(got.deviation, np.std(values, ddof=1))
    self.assertEqual((got.n, got.facts), (650, 60))

  def test_bounds_are_those_of_the_formula(self):
    rng = np.random.default_rng(3)
    values = [rng.normal(mean, 1, 300) / 20 for mean in (-1, 0, 2)]
    got = seeds.mean_difference(values, [_FACTS] * 3, largest=1.0)
    of_mean = gaps.mean_difference(np.mean(values, 0), _FACTS)
    t_facts = stats.t.ppf(0.95, 59)
    for side, bound, alone in (
        (-1, got.lower, of_mean.lower), (1, got.upper, of_mean.upper)):
      of_facts = ((alone - got.value) / t_facts)**2
      of_seeds = np.var([v.mean() for v in values], ddof=1) / 3
      freedom = (of_facts + of_seeds)**2 / (of_facts**2 / 59 + of_seeds**2 / 2)
      want = got.value + side * stats.t.ppf(0.95, freedom) * math.sqrt(
          of_facts + of_seeds)
      self.assertAlmostEqual(bound, want, places=6)

  def test_equal_seeds_have_the_bounds_of_one(self):
    right, ignorance = _answers(4)
    asked = _asked(right['fp'], ignorance)
    one, three = seeds.known_share([asked]), seeds.known_share([asked] * 3)
    self.assertAlmostEqual(three.deviation, 0)
    np.testing.assert_allclose(three.interval, one.interval)
    self.assertAlmostEqual(three.upper, one.upper)

  def test_seeds_that_decide_have_the_quantile_of_few_seeds(self):
    facts = [f'fact/{i}' for i in range(50)]
    noise = np.tile([-1e-4, 1e-4], 25)
    got = seeds.over_seeds([
        seeds.Sample((mean + noise)[:, None], facts, lambda m: m[..., 0])
        for mean in (-0.1, 0.0, 0.1)])
    want = stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3)
    np.testing.assert_allclose(got.interval, (-want, want), rtol=1e-2)

  def test_each_model_has_its_own_ignorance(self):
    facts = [f'fact/{i}' for i in range(2000)]
    rank = np.arange(2000)
    right = np.stack([rank < 2000, rank < 1000], 1)  # 1.0 and 0.5.
    ignorance = np.tile([0.2, 0.4], (2000, 1))
    got = seeds.known_share([
        seeds.Asked(right, ignorance, facts, ['form'] * 2000)])
    self.assertAlmostEqual(got.value, 0.1 / 0.6, places=6)

  def test_not_defined_without_a_lead_of_the_base(self):
    right, ignorance = _answers(5)
    right['fp'][:, 0] = False
    asked = _asked(right['fp'], ignorance)
    for got in (seeds.known_share([asked, asked]),
                seeds.known_gap([asked], [asked])):
      self.assertTrue(math.isnan(got.value))
      self.assertEqual(got.interval, (-math.inf, math.inf))
      self.assertIsNone(got.record()['by_seed'][0])

  def test_a_seed_without_questions_is_refused(self):
    for values in ([], [[0.1], []]):
      with self.assertRaisesRegex(ValueError, 'seeds have no questions'):
        seeds.over_seeds([
            seeds.Sample(np.array(v)[:, None], ['f'] * len(v), np.ravel)
            for v in values])

  def test_record(self):
    right, ignorance = _answers(6)
    asked = _asked(right['fp'], ignorance)
    got = seeds.known_share([asked, asked]).record()
    self.assertEqual(got['by_seed'], [got['value']] * 2)
    self.assertIsNone(
        seeds.known_share([asked]).record()['deviation'])


class CoverageTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('seeds_alike', 3, 60, 0.0, 0.95), ('seeds_differ', 3, 60, 0.05, 0.94),
      ('seeds_decide', 3, 60, 0.1, 0.92), ('five_seeds', 5, 40, 0.1, 0.93))
  def test_intervals_hold_the_truth(self, number, facts, deviation, least):
    """Each fact has its own probability, which each seed shifts."""
    rng, trials = np.random.default_rng(0), 400
    names = [f'fact/{i}' for i in range(facts)]
    hit = hit_by_fact = 0
    for _ in range(trials):
      of_fact = rng.uniform(0.35, 0.65, (1, facts))
      shift = rng.normal(0, deviation, (number, 1))
      right = rng.random((number, facts)) < of_fact + shift
      got = seeds.share(list(right), [names] * number, resamples=200)
      hit += got.interval[0] <= 0.5 <= got.interval[1]
      alone = gaps.mean_difference(right.mean(0), names, resamples=200)
      hit_by_fact += alone.interval[0] <= 0.5 <= alone.interval[1]
    self.assertBetween(hit / trials, least, 0.999)
    if deviation >= 0.1:  # Intervals over facts alone do not do.
      self.assertLess(hit_by_fact / trials, 0.85)


if __name__ == '__main__':
  absltest.main()
