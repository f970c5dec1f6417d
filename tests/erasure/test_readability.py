"""Readability: hand numbers, nulls and verdicts."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.erasure import readability

_M = 80
_RIGHT = np.arange(_M) % 4
_COUNTS = np.full(_M, 4)
_FACTS = np.repeat(np.arange(_M // 2), 2)


def _picks(*shares, seed=0):
  """Choices of each layer, right in a share of the questions, by fact."""
  rng = np.random.default_rng(seed)
  return np.stack([
      np.where(rng.permutation(_M // 2)[_FACTS] < share * _M // 2,
               _RIGHT, (_RIGHT + 1) % 4) for share in shares])


def _guessed(layers, choices=4, draws=2000):
  """What guesses that know nothing answer, question by question."""
  rng = np.random.default_rng(1)
  return rng.binomial(_M, 1 / choices, (draws, layers)) / _M


def _measure(base, unlearned, facts=_FACTS, guessed=None, **beside):
  guessed = _guessed(len(unlearned)) if guessed is None else guessed
  return readability.measure(
      base, unlearned, beside, _RIGHT, facts, guessed, resamples=200, seed=0)


_BASE = _picks(0.25, 0.5, 1.0, 1.0)


class PicksTest(absltest.TestCase):

  def test_picks_the_best_choice_of_each_question(self):
    scores = np.array([[[1.0, 5.0, 3.0], [9.0, 2.0, 4.0]]])
    choices = np.array([[0, 2], [1, 2]])
    np.testing.assert_array_equal(
        readability.picks(scores, choices), [[1, 1]])

  def test_picks_the_first_of_equal_choices(self):
    got = readability.picks(np.ones((2, 1, 3)), np.array([[1, 2, 1]]))
    np.testing.assert_array_equal(got, [[0], [0]])


class GuessesTest(parameterized.TestCase):

  def _asked(self, facts=40, per_fact=6, tokens=50, seed=0):
    """Questions whose right token is the fact's, and whose others are any."""
    rng = np.random.default_rng(seed)
    fact = np.repeat(np.arange(facts), per_fact)
    choices = np.array([rng.choice(
        np.setdiff1d(np.arange(tokens), f), 4, replace=False) for f in fact])
    right = rng.integers(0, 4, fact.size)
    choices[np.arange(fact.size), right] = fact
    return fact, choices, right

  def _scores(self, fact, alike, seed, layers=5, tokens=50):
    """Uninformative logits, correlated within a fact."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(layers, fact.max() + 1, tokens))[:, fact]
    own = rng.normal(size=(layers, fact.size, tokens))
    return np.sqrt(alike) * shared + np.sqrt(1 - alike) * own

  @parameterized.parameters(0.0, 0.9)
  @pytest.mark.medium
  def test_guessing_level_matches_uninformative_states(self, alike):
    fact, choices, right = self._asked()
    above = []
    for seed in range(150):
      scores = self._scores(fact, alike, seed)
      got = readability.guesses(
          scores, choices, right, fact, draws=60, seed=seed)
      self.assertEqual(got.shape, (60, 5))
      most = np.equal(readability.picks(scores, choices), right).mean(1).max()
      above.append(most > np.quantile(got.max(1), 0.95))
    self.assertBetween(np.mean(above), 0.005, 0.12)

  def test_perfect_states_do_not_raise_the_guessing_level(self):
    fact, choices, right = self._asked()
    scores = np.eye(50)[fact][None] + 1e-3 * self._scores(fact, 0, 0, layers=1)
    np.testing.assert_array_equal(readability.picks(scores, choices)[0], right)
    got = readability.guesses(scores, choices, right, fact, draws=200, seed=0)
    self.assertLess(got.mean(), 0.3)

  def test_guesses_include_answers_that_every_question_favours(self):
    fact, choices, right = self._asked()
    scores = np.broadcast_to(-np.arange(50.0), (1, fact.size, 50))
    said = np.equal(readability.picks(scores, choices), right).mean()
    got = readability.guesses(scores, choices, right, fact, draws=20, seed=0)
    np.testing.assert_allclose(got, said)

  def test_facts_of_different_sizes(self):
    fact, choices, right = self._asked()
    some = np.flatnonzero((fact % 3 > 0) | (np.arange(fact.size) % 6 == 0))
    got = readability.guesses(
        self._scores(fact, 0.5, 0)[:, some], choices[some], right[some],
        fact[some], draws=50, seed=0)
    self.assertBetween(got.mean(), 0.2, 0.3)


class MeasureTest(parameterized.TestCase):

  def test_readability_of_the_base_is_1(self):
    got = _measure(_BASE, _BASE)
    self.assertEqual(got['value'], 1.0)
    self.assertEqual(got['interval'], [1.0, 1.0])
    self.assertIs(got['passed'], False)

  def test_best_layers_over_guessing(self):
    unlearned = _picks(0.25, 0.5, 0.75, 0.25, seed=1)
    got = _measure(_BASE, unlearned)
    guess = _guessed(4).max(1)
    self.assertAlmostEqual(
        got['value'], (0.75 - guess.mean()) / (1 - guess.mean()))
    self.assertAlmostEqual(
        got['nulls']['guessing']['level_95'],
        (np.quantile(guess, 0.95) - guess.mean()) / (1 - guess.mean()))
    self.assertBetween(got['value'], *got['interval'])
    self.assertEqual(got['by_layer']['base'], [0.25, 0.5, 1.0, 1.0])
    self.assertEqual(got['by_layer']['unlearned'], [0.25, 0.5, 0.75, 0.25])
    self.assertEqual((got['questions'], got['facts']), (_M, _M // 2))
    json.dumps(got, allow_nan=False)

  def test_a_base_at_chance_is_refused(self):
    with self.assertRaisesRegex(readability.NothingToRead, 'answers 0.25 of'):
      _measure(_picks(0.25, 0.25), _picks(0.25, 0.25, seed=1))

  def test_an_avoided_answer_fails(self):
    got = _measure(_BASE, _picks(0.25, 0.25, 0.0, 0.25))
    self.assertEqual((got['avoided']['value'], got['avoided']['layer']), (0, 2))
    self.assertLess(0.05, got['avoided']['guessing_level_5'])
    self.assertIs(got['checks']['within_guessing'], True)
    self.assertIs(got['checks']['not_avoided'], False)
    self.assertIs(got['passed'], False)

  def test_hidden_is_the_excess_over_the_last_layer(self):
    hidden = _measure(_BASE, _picks(0.25, 0.5, 1.0, 0.4))['hidden']
    self.assertAlmostEqual(hidden['value'], 0.6)
    self.assertEqual(hidden['layer'], 2)
    self.assertGreater(hidden['interval'][0], 0.4)
    # Answers given less often than by guessing are not counted as hidden.
    below = _picks(0.0, 0.0, 0.3, 0.0)
    hidden = _measure(_BASE, below)['hidden']
    guess = _guessed(4).max(1).mean()
    self.assertAlmostEqual(hidden['value'], 0.3 - guess, delta=0.01)
    shown = _measure(_BASE, _picks(0.25, 0.25, 0.25, 0.5))['hidden']
    self.assertEqual(
        (shown['value'], shown['interval'], shown['layer']), (0.0, [0, 0], 3))

  def test_uninformative_layers_give_readability_near_0(self):
    rng = np.random.default_rng(0)
    # Every third layer says what it likes: as many as are guessed with.
    guessed = _guessed(4)[:, np.repeat(np.arange(4), 3)]
    runs = [_measure(_BASE, rng.integers(0, 4, (4, _M))[
        np.repeat(np.arange(4), 3)], guessed=guessed) for _ in range(120)]
    middles = [np.mean(run['interval']) for run in runs]
    for values in ([run['value'] for run in runs], middles):
      self.assertLess(abs(np.mean(values)), 0.03)
    # 95 % levels, but a value at the level, which is 1 in 20, is not within.
    for check in ('within_guessing', 'not_avoided'):
      self.assertGreater(np.mean(
          [run['checks'][check] is True for run in runs]), 0.8, check)
    self.assertEqual({run['passed'] for run in runs} - {True, 'inconclusive'},
                     set())
    hidden = [run['hidden'] for run in runs]
    self.assertLess(abs(np.mean([h['value'] for h in hidden])), 0.03)
    self.assertGreater(np.mean([
        h['value'] < h['guessing_level_95'] for h in hidden]), 0.85)

  def test_comparison_models_are_paired_by_question(self):
    same = _picks(0.25, 0.5, 0.75, 0.25, seed=1)
    nulls = _measure(_BASE, same, base_quantized=_BASE, same=same)['nulls']
    self.assertEqual(nulls['base_quantized']['value'], 1.0)
    self.assertLess(nulls['base_quantized']['difference_interval'][1], 0)
    self.assertEqual(nulls['same']['difference_interval'], [0.0, 0.0])

  def test_facts_are_resampled(self):
    unlearned = _picks(0.5, 0.5, 0.5, 0.5, seed=1)
    width = lambda facts: np.ptp(_measure(
        _BASE, unlearned, facts=facts)['interval'])
    self.assertGreater(width(np.repeat(np.arange(5), 16)), width(
        np.arange(_M)))


class JudgeTest(parameterized.TestCase):

  def _judge(self, value=0.0, interval=(-0.1, 0.05), guessing=0.1, halves=0.9,
             difference=(-1.0, -0.8), least=0.2, least_interval=(0.1, 0.3)):
    return readability.judge({
        'value': value, 'interval': interval, 'avoided': {
            'value': least, 'interval': least_interval,
            'guessing_level_5': 0.15}, 'nulls': {
            'guessing': {'level_95': guessing},
            'prompt_halves': {'level_5': halves},
            'suppression': {'value': 0.9, 'difference_interval': difference}}})

  def test_passes_below_all_nulls(self):
    got = self._judge()
    self.assertIs(got['passed'], True)
    self.assertLen(got['checks'], 4)

  @parameterized.parameters(
      (dict(value=0.3, interval=(0.2, 0.4)), False),
      (dict(value=0.2, interval=(0.0, 0.4)), 'inconclusive'),
      (dict(least=0.02, least_interval=(0.0, 0.05)), False),
      (dict(least=0.1, least_interval=(0.0, 0.2)), 'inconclusive'),
      (dict(halves=-0.1), False), (dict(difference=(0.1, 0.2)), False),
      (dict(difference=(-0.1, 0.2)), 'inconclusive'))
  def test_each_null_can_prevent_a_pass(self, changes, want):
    self.assertEqual(self._judge(**changes)['passed'], want)


if __name__ == '__main__':
  absltest.main()
