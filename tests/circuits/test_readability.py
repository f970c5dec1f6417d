"""Readability: hand numbers, nulls and verdicts."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits import readability

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


def _measure(base, unlearned, right=_RIGHT, counts=_COUNTS, facts=_FACTS,
             **beside):
  return readability.measure(
      base, unlearned, beside, right, counts, facts, resamples=200, seed=0)


_BASE = _picks(0.25, 0.5, 1.0, 1.0)


class MeasureTest(parameterized.TestCase):

  def test_the_base_is_all_there(self):
    got = _measure(_BASE, _BASE)
    self.assertEqual(got['value'], 1.0)
    self.assertEqual(got['interval'], [1.0, 1.0])
    self.assertIs(got['passed'], False)

  def test_best_layers_over_guessing(self):
    unlearned = _picks(0.25, 0.5, 0.75, 0.25, seed=1)
    got = _measure(_BASE, unlearned)
    rng = np.random.default_rng(1)
    guess = np.mean([np.equal(unlearned, rng.integers(0, 4, _M)).mean(1).max()
                     for _ in range(2000)])
    self.assertAlmostEqual(
        got['value'], (0.75 - guess) / (1 - guess), delta=0.01)
    self.assertBetween(got['value'], *got['interval'])
    self.assertEqual(got['by_layer']['base'], [0.25, 0.5, 1.0, 1.0])
    self.assertEqual(got['by_layer']['unlearned'], [0.25, 0.5, 0.75, 0.25])
    self.assertEqual((got['questions'], got['facts']), (_M, _M // 2))
    json.dumps(got, allow_nan=False)

  def test_what_the_last_layer_does_not_say_is_hidden(self):
    hidden = _measure(_BASE, _picks(0.25, 0.5, 1.0, 0.4))['hidden']
    self.assertAlmostEqual(hidden['value'], 0.6)
    self.assertEqual(hidden['layer'], 2)
    self.assertGreater(hidden['interval'][0], 0.4)
    # What is said less often than guessing would is not hidden for that.
    below = _picks(0.0, 0.0, 0.3, 0.0)
    hidden = _measure(_BASE, below)['hidden']
    rng = np.random.default_rng(1)
    guess = np.mean([np.equal(below, rng.integers(0, 4, _M)).mean(1).max()
                     for _ in range(2000)])
    self.assertAlmostEqual(hidden['value'], 0.3 - guess, delta=0.01)
    shown = _measure(_BASE, _picks(0.25, 0.25, 0.25, 0.5))['hidden']
    self.assertEqual(
        (shown['value'], shown['interval'], shown['layer']), (0.0, [0, 0], 3))

  def test_where_nothing_is_to_be_read_nothing_is(self):
    rng = np.random.default_rng(0)
    runs = [_measure(_BASE, rng.integers(0, 4, (12, _M))[
        np.repeat(np.arange(4), 3)]) for _ in range(60)]
    middles = [np.mean(run['interval']) for run in runs]
    for values in ([run['value'] for run in runs], middles):
      self.assertLess(abs(np.mean(values)), 0.03)
    # True 19 times in 20, of the 95 % level.
    self.assertGreater(np.mean([run['passed'] is True for run in runs]), 0.85)
    self.assertEqual({run['passed'] for run in runs} - {True, 'inconclusive'},
                     set())
    hidden = [run['hidden'] for run in runs]
    self.assertLess(abs(np.mean([h['value'] for h in hidden])), 0.03)
    self.assertGreater(np.mean([
        h['value'] < h['guessing_level_95'] for h in hidden]), 0.85)

  def test_models_beside_are_paired(self):
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

  def test_guessing_knows_how_many_choices_there_are(self):
    level = lambda count: _measure(
        _BASE, _picks(0.3, 0.3, 0.3, 0.3), counts=np.full(_M, count))[
            'nulls']['guessing']['level_95']
    self.assertGreater(_measure(_BASE, _picks(0.3), right=_RIGHT % 2,
                                counts=np.full(_M, 2))['nulls']['guessing'][
                                    'level_95'], 0)
    self.assertGreater(level(4), 0)


class JudgeTest(parameterized.TestCase):

  def _judge(self, value=0.0, interval=(-0.1, 0.05), guessing=0.1, halves=0.9,
             difference=(-1.0, -0.8)):
    return readability.judge({
        'value': value, 'interval': interval, 'nulls': {
            'guessing': {'level_95': guessing},
            'prompt_halves': {'level_5': halves},
            'suppression': {'value': 0.9, 'difference_interval': difference}}})

  def test_passes_below_all(self):
    got = self._judge()
    self.assertIs(got['passed'], True)
    self.assertLen(got['checks'], 3)

  @parameterized.parameters(
      (dict(value=0.3, interval=(0.2, 0.4)), False),
      (dict(value=0.2, interval=(0.0, 0.4)), 'inconclusive'),
      (dict(halves=-0.1), False), (dict(difference=(0.1, 0.2)), False),
      (dict(difference=(-0.1, 0.2)), 'inconclusive'))
  def test_each_can_stop_it(self, changes, want):
    self.assertEqual(self._judge(**changes)['passed'], want)


if __name__ == '__main__':
  absltest.main()
