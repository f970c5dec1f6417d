"""The known share: hand numbers, degenerate cases, the rule, coverage."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.statistics import forgetting
from mansu_jax.statistics import intervals
from mansu_jax.statistics import power
from tests.statistics import ids

_MANY = 400  # Facts whose noise is small.


def _facts(size=_MANY, forms=1):
  return [f'fact{i}' for i in range(size)] * forms


def _right(share, size=_MANY):
  """The first facts are answered right; [size]."""
  return (np.arange(size) < round(share * size)).astype(float)


def _of(function, base, unlearned, ignorance=0.25, forms=None, **options):
  """The statistic of one question a fact and form."""
  forms = forms or ['plain'] * len(base)
  count = len(set(forms))
  options = {'resamples': 500, **options}
  return function(
      base, unlearned, np.full(len(base), ignorance),
      _facts(len(base) // count, count), forms, **options)


class KnownShareTest(parameterized.TestCase):

  @parameterized.parameters((1.0, 1.0), (0.4, 0.2), (0.7, 0.6))
  def test_one_form(self, right, want):
    got = _of(forgetting.known_share, np.ones(_MANY), _right(right))
    self.assertAlmostEqual(got.value, want, places=4)
    self.assertEqual((got.n, got.facts), (_MANY, _MANY))

  def test_avoidance_in_one_form_does_not_hide_knowledge_in_another(self):
    forms = ['a'] * _MANY + ['b'] * _MANY
    got = _of(forgetting.known_share, np.ones(2 * _MANY),
              np.concatenate([_right(0.0), _right(0.5)]), forms=forms)
    self.assertAlmostEqual(got.value, 0.5 * (0.25 / 0.75), places=4)
    self.assertGreater(got.lower, 0.1)
    pooled = _of(forgetting.known_share, np.ones(2 * _MANY),
                 np.concatenate([_right(0.0), _right(0.5)]))
    self.assertLess(pooled.upper, 0.1)

  def test_larger_forms_weigh_more(self):
    forms = ['a'] * 300 + ['b'] * 100
    unlearned = np.concatenate([_right(1.0, 300), _right(0.0, 100)])
    got = forgetting.known_share(
        np.ones(400), unlearned, np.full(400, 0.25), ids.repeat(400, 1), forms,
        resamples=500)
    self.assertAlmostEqual(got.value, 0.75, places=3)

  def test_a_form_that_the_base_does_not_know_has_nothing_to_lose(self):
    forms = ['a'] * _MANY + ['b'] * _MANY
    share = lambda of_b: _of(
        forgetting.known_share, np.concatenate([_right(1.0), _right(0.05)]),
        np.concatenate([_right(0.4), _right(of_b)]), forms=forms)
    self.assertAlmostEqual(share(0.05).value, 0.2, places=4)
    self.assertAlmostEqual(share(0.4).value, 0.4, places=4)

  @parameterized.parameters(0.25, 0.27)
  def test_not_defined_unless_the_base_leads(self, base):
    got = _of(forgetting.known_share, _right(base), _right(0.1))
    self.assertTrue(np.isnan(got.value))
    self.assertEqual(got.interval, (-np.inf, np.inf))
    self.assertEqual((got.lower, got.upper), (-np.inf, np.inf))

  @parameterized.parameters(0.25, 0.5)
  def test_five_facts_answered_wrong_do_not_prove_ignorance(self, ignorance):
    got = _of(forgetting.known_share, np.ones(5), np.zeros(5), ignorance)
    self.assertLessEqual(got.value, 0.0)
    self.assertAlmostEqual(got.upper, (1 - 0.05**0.2) / (1 - ignorance))
    many = _of(forgetting.known_share, np.ones(59), np.zeros(59), ignorance)
    self.assertLess(many.upper, 0.11)

  def test_a_model_equal_to_its_base_keeps_width(self):
    got = _of(forgetting.known_share, _right(0.9), _right(0.9))
    self.assertAlmostEqual(got.value, 1.0, places=4)
    self.assertLess(got.lower, 0.98)

  def test_seed_decides_everything(self):
    share = lambda seed: _of(
        forgetting.known_share, np.ones(60), _right(0.4, 60), seed=seed)
    self.assertEqual(share(1), share(1))
    self.assertNotEqual(share(1), share(2))


  def test_a_model_that_guesses_better_than_the_base_is_not_ignorant(self):
    """It knows half the facts, and guesses 0.8 of the others' answers."""
    half = np.where(np.arange(_MANY) < _MANY // 2, 1, np.arange(_MANY) % 5 < 4)
    share = lambda unlearned, own: forgetting.known_share(
        np.ones(_MANY), unlearned, np.tile([0.25, own], (_MANY, 1)), _facts(),
        ['plain'] * _MANY, resamples=500)
    got = share(half, 0.8)
    self.assertAlmostEqual(got.value, 0.5, delta=0.01)
    self.assertGreater(got.upper - got.lower, 0.2)  # Little room.
    self.assertTrue(np.isnan(share(np.ones(_MANY), 1.0).value))


class ForgettingTest(parameterized.TestCase):

  def test_is_one_less_the_known_share(self):
    known = _of(forgetting.known_share, np.ones(_MANY), _right(0.4))
    got = _of(forgetting.forgetting, np.ones(_MANY), _right(0.4))
    self.assertAlmostEqual(got.value, 0.8, places=4)
    self.assertEqual((got.lower, got.upper), (1 - known.upper, 1 - known.lower))
    self.assertEqual(
        got.interval, (1 - known.interval[1], 1 - known.interval[0]))

  def test_upper_of_all_has_a_level_of_its_own(self):
    phi = lambda level: _of(
        forgetting.forgetting, np.ones(_MANY), _right(0.4), level_of_all=level)
    one, five = phi(None), phi(intervals.bonferroni(5))
    self.assertEqual(one.upper, five.upper)
    self.assertGreater(five.upper_of_all, one.upper_of_all)

  @parameterized.parameters(13, 15)
  def test_few_facts_that_are_all_known_are_not_forgotten(self, facts):
    """As reverse questions of the test relations; guesses may agree."""
    size = 6 * facts
    got = forgetting.forgetting(
        np.ones(size), np.ones(size), np.full(size, 0.3),
        ids.repeat(facts, 6), [f'form {i % 2}' for i in range(size)],
        level_of_all=intervals.bonferroni(8), resamples=500)
    self.assertAlmostEqual(got.value, 0, delta=0.05)
    self.assertLess(got.upper_of_all, forgetting.PHI)

  def test_record(self):
    got = _of(forgetting.forgetting, np.ones(60), _right(0.4, 60)).record()
    self.assertEqual(json.loads(json.dumps(got))['facts'], 60)
    self.assertGreater(got['upper_of_all'], got['value'])
    got = _of(forgetting.forgetting, _right(0.25), _right(0.25)).record()
    self.assertIsNone(got['value'])
    self.assertIsNone(got['upper_of_all'])


class KnownGapTest(absltest.TestCase):

  def _gap(self, base_q, unlearned_q, base, unlearned):
    return forgetting.known_gap(
        *(_right(x) for x in (base_q, unlearned_q, base, unlearned)),
        np.full(_MANY, 0.25), _facts(), ['plain'] * _MANY, resamples=500)

  def test_knowledge_that_rounding_brings_back(self):
    got = self._gap(1.0, 0.7, 1.0, 0.4)
    self.assertAlmostEqual(got.value, 0.4, places=4)
    self.assertGreater(got.lower, 0.3)

  def test_is_relative_to_the_base_at_each_precision(self):
    got = self._gap(0.85, 0.55, 1.0, 0.55)
    self.assertAlmostEqual(got.value, 0.5 - 0.4, places=4)

  def test_a_base_that_loses_does_not_make_an_ignorant_model_gain(self):
    got = self._gap(0.8, 0.25, 1.0, 0.25)
    self.assertAlmostEqual(got.value, 0.0, delta=0.01)
    self.assertLess(got.interval[0], 0.0)
    self.assertGreater(got.interval[1], 0.0)

  def test_models_that_agree_everywhere_keep_width(self):
    got = self._gap(1.0, 0.25, 1.0, 0.25)
    self.assertEqual(got.value, 0.0)
    bound = 1 - 0.05**(1 / _MANY)
    self.assertAlmostEqual(got.upper, bound / 0.75)
    self.assertAlmostEqual(got.lower, -bound / 0.75)

  def test_not_defined_unless_both_bases_lead(self):
    self.assertTrue(np.isnan(self._gap(0.25, 0.25, 1.0, 0.25).value))
    self.assertTrue(np.isnan(self._gap(1.0, 0.25, 0.25, 0.25).value))

  def test_other_guesses_are_no_gap(self):
    """Two kinds of questions; quantized, one is guessed better."""
    ranks = np.arange(_MANY)
    def answers(known, guessed):  # Right without noise.
      return (ranks < known * _MANY) | ((ranks * 7919 % 1000) < 1000 * guessed)
    levels = {'fp': (0.25, 0.25), 'nf4': (0.25, 0.75)}
    right = {p: np.concatenate([answers(k, g) for k, g in zip(
        (0.1, 0.5), own)]) for p, own in levels.items()}
    of = lambda p: np.repeat(levels[p], _MANY)
    base = np.ones(2 * _MANY)
    got = forgetting.known_gap(
        base, right['nf4'], base, right['fp'],
        np.stack([np.full(2 * _MANY, 0.25), of('nf4'),
                  np.full(2 * _MANY, 0.25), of('fp')], 1),
        _facts(forms=2), ['a'] * _MANY + ['b'] * _MANY, resamples=200)
    self.assertAlmostEqual(got.value, 0, delta=0.02)

  def test_shares_are_paired(self):
    rng = np.random.default_rng(0)
    full = rng.random(_MANY) < 0.6
    paired, apart = (
        forgetting.known_gap(
            np.ones(_MANY), quantized, np.ones(_MANY), full,
            np.full(_MANY, 0.25), _facts(), ['plain'] * _MANY, resamples=500)
        for quantized in (full ^ (rng.random(_MANY) < 0.05),
                          rng.permutation(full)))
    width = lambda x: x.interval[1] - x.interval[0]
    self.assertLess(width(paired), width(apart) / 2)


class AvoidanceTest(absltest.TestCase):

  def test_avoidance(self):
    avoid = lambda right, size: forgetting.avoidance(
        _right(right, size), np.full(size, 0.25), ids.repeat(size, 1),
        resamples=500)
    self.assertAlmostEqual(avoid(0.1, 100).value, -0.15)
    self.assertLess(avoid(0.1, 100).upper, 0)
    self.assertGreater(avoid(0.25, 100).upper, 0)
    self.assertAlmostEqual(avoid(0.0, 5).upper, 1 - 0.05**0.2 - 0.25)


class FormsOfTest(absltest.TestCase):

  def test_small_relations_share_groups(self):
    relations = ['capital'] * 4 + ['author', 'born'] * 2
    forms = ['x', 'y'] * 2 + ['x', 'x', 'y', 'y']
    facts = ['a', 'a', 'b', 'b', 'c', 'd', 'c', 'd']
    got = forgetting.forms_of(forms, relations, facts, least_facts=2)
    other = 'other relations: '
    self.assertEqual(
        got, ['capital: x', 'capital: y'] * 2
        + [other + 'x', other + 'x', other + 'y', other + 'y'])
    self.assertEqual(
        set(forgetting.forms_of(forms, relations, facts)),
        {other + 'x', other + 'y'})


class JudgeTest(parameterized.TestCase):

  def _phi(self, lower, upper_of_all):
    return forgetting.Forgetting(
        value=0.9, n=1, facts=1, interval=(0, 1), lower=lower, upper=0.0,
        upper_of_all=upper_of_all)

  @parameterized.parameters(
      ([(0.9, 1.0), (0.88, 1.0)], True),
      ([(0.9, 1.0), (0.87, 1.0)], 'inconclusive'),
      ([(0.9, 1.0), (0.7, 0.87)], False), ([(0.7, 0.87), (0.8, 1.0)], False),
      ([(0.9, 1.0), (-np.inf, np.inf)], 'inconclusive'),
      ([], 'inconclusive'))
  def test_the_worst_reading_decides(self, bounds, want):
    got = forgetting.judge([self._phi(*pair) for pair in bounds], 0.88)
    self.assertEqual(got, want)


class ErrorsTest(absltest.TestCase):

  def test_arguments(self):
    with self.assertRaisesRegex(ValueError, '1 forms and 5 answers'):
      forgetting.known_share(
          np.ones(5), np.ones(5), np.zeros(5), ids.repeat(5, 1), ['a'])
    with self.assertRaisesRegex(ValueError, 'ignorance lies between'):
      _of(forgetting.known_share, np.ones(5), np.ones(5), 1.5)
    with self.assertRaisesRegex(ValueError, 'other than 0 and 1'):
      _of(forgetting.forgetting, np.ones(5), np.full(5, 0.5))
    with self.assertRaisesRegex(ValueError, '1 forms, 2 relations'):
      forgetting.forms_of(['a'], ['b', 'c'], ['d', 'e'])


@pytest.mark.slow
@pytest.mark.long
class CoverageTest(parameterized.TestCase):
  """Simulated: how often bounds hold the truth (300 runs each)."""

  _CHOICE = power.Reading(forms=5, ignorance=0.25, base=0.95)
  _SETS = power.Reading(
      forms=5, sets=3, ignorance=0.25, base=0.93, alike=0.6)
  _MEASURED = power.Reading(
      forms=5, sets=3, ignorance=0.38, base=0.93, alike=0.6, spread=0.2,
      probes=2)
  _UNEQUAL = power.Reading(
      forms=5, sets=3, ignorance=0.38, own_ignorance=0.55, base=0.93, alike=0.6,
      spread=0.2, probes=2)
  _SPOKEN = power.Reading(forms=2, ignorance=0.01, base=0.55)

  @parameterized.named_parameters(
      ('choice_0', _CHOICE, 0.0, 0.95, 0.9),
      ('choice_1', _CHOICE, 0.1, 0.85, 0.92),
      ('choice_2', _CHOICE, 0.2, 0.88, 0.92),
      ('choice_5', _CHOICE, 0.5, 0.92, 0.92),
      ('sets_0', _SETS, 0.0, 0.95, 0.9),
      ('sets_1', _SETS, 0.1, 0.85, 0.92),
      ('measured_0', _MEASURED, 0.0, 0.95, 0.9),
      ('measured_2', _MEASURED, 0.2, 0.88, 0.92),
      ('unequal_0', _UNEQUAL, 0.0, 0.95, 0.9),
      ('unequal_2', _UNEQUAL, 0.2, 0.88, 0.92),
      ('spoken_0', _SPOKEN, 0.0, 0.95, 0.95),
      ('spoken_1', _SPOKEN, 0.1, 0.85, 0.92),
      ('spoken_5', _SPOKEN, 0.5, 0.92, 0.92))
  def test_bounds_of_facts_like_these(
      self, reading, known, least_up, least_low):
    rng = np.random.default_rng(0)
    up = low = 0
    for _ in range(300):
      found = power.answers(rng.random(59) < known, reading, rng)
      got = forgetting.known_share(
          found.base, found.model, found.ignorance, found.fact, found.form,
          resamples=300)
      up += known <= got.upper
      low += got.lower <= known
    self.assertGreaterEqual(up / 300, least_up)
    self.assertGreaterEqual(low / 300, least_low)

  @parameterized.named_parameters(
      ('independent', False), ('guesses_agree_in_all_forms', True))
  def test_a_bound_of_these_facts(self, agree):
    """Guesses that agree in all forms must not look like knowledge."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
      knows = rng.permutation(59) < 6
      base, model, fact, form, _ = power.answers(knows, self._CHOICE, rng)
      if agree:
        guess = rng.random(59) < 0.25
        model = np.where(knows[fact], base, guess[fact])
      got = forgetting.forgetting(
          base, model, np.full(base.size, 0.25), fact, form, resamples=100)
      held += 1 - 6 / 59 <= got.upper_of_all
    self.assertGreaterEqual(held / 300, 0.92)

  def test_measured_ignorance_may_agree_in_all_forms_too(self):
    rng, held = np.random.default_rng(0), 0
    forms, size = 6, 60
    fact = np.repeat(np.arange(size), forms)
    for _ in range(300):
      guess = rng.random((3, size)) < 0.3  # The model's, and two probes.
      model = (guess[0] | (rng.permutation(size) < 9))[fact]
      measured = guess[1:].mean(0)[fact]
      got = forgetting.forgetting(
          np.ones(fact.size), model, np.stack(
              [np.full(fact.size, 0.3), measured], 1), fact,
          np.tile(np.arange(forms), size), resamples=100)
      held += 1 - 9 / size <= got.upper_of_all
    self.assertGreaterEqual(held / 300, 0.93)

  @parameterized.parameters(0, 10)
  def test_bounds_that_fail_hold_in_many_small_forms(self, known):
    """Six relations of ten facts, which the base half knows."""
    reading = power.Reading(forms=6, ignorance=0.25, base=0.6)
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
      found = power.answers(rng.permutation(60) < known, reading, rng)
      forms = [f'{fact % 6} {form}' for fact, form in zip(
          found.fact, found.form)]
      got = forgetting.forgetting(
          found.base, found.model, found.ignorance, found.fact, forms,
          resamples=200)
      held += 1 - known / 60 <= got.upper_of_all
    self.assertGreaterEqual(held / 300, 0.94)


if __name__ == '__main__':
  absltest.main()
