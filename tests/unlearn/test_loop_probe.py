"""The loop that looks at forgetting: when it ends, what it says."""

import re

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import optax

from mansu_jax.unlearn import loop
from mansu_jax.unlearn import rates as rates_lib
from tests.unlearn import tiny_loop as tiny


class ProbeTest(parameterized.TestCase):

  def _run(self, keep=None, at_most=0.4, steps=7, **options):
    self.seen = []

    def measure(theta):
      self.seen.append(float(theta['w'][0]))
      return self.seen[-1]  # Halves with each step.

    return tiny.run(steps=steps, log_every=2, keep=keep, probe=loop.Probe(
        measure=measure, every=2, at_most=at_most), **options)

  @parameterized.parameters((0.4, 2, [0.25]), (0.25, 2, [0.25]),
                            (0.1, 4, [0.25, 0.0625]))
  def test_ends_at_the_first_look_that_is_low(self, at_most, at, seen):
    theta, history = self._run(at_most=at_most)
    self.assertLen(history, at)
    self.assertEqual(self.seen, [1.0, *seen])  # First the base.
    np.testing.assert_allclose(theta['w'], np.array(tiny.START) / 2 ** at)
    probe = [row['probe'] for row in history]
    self.assertEqual(probe[1::2], seen)
    self.assertTrue(np.isnan(probe[::2]).all())

  def test_a_stop_that_is_not_reached_is_said(self):
    with self.assertLogs(level='WARNING') as logs:
      _, history = self._run(at_most=1e-9)
    self.assertLen(history, 7)
    self.assertRegex(logs.output[-1], 'All 7 steps are done, but the probe is'
                     ' 0.008, above --unlearn_stop_forget=1e-09')

  @parameterized.parameters(1, 2, 3)
  def test_a_resumed_run_stops_at_the_same_step(self, step):
    whole = tiny.Memory()
    theta, history = self._run(whole, at_most=0.1)
    self.assertEqual(list(whole.states), [1, 2, 3])  # Not the last one.
    got, rows = self._run(tiny.Memory(whole.states[step]), at_most=0.1)
    np.testing.assert_array_equal(got['w'], theta['w'])
    np.testing.assert_equal(rows, history)  # NaN equals NaN.

  def test_the_log_shows_the_probe(self):
    with self.assertLogs(level='INFO') as logs:
      self._run()
    self.assertTrue(any('probe 0.250' in line for line in logs.output))

  def test_it_looks_after_the_last_step(self):
    _, history = self._run(at_most=None)
    self.assertEqual([row['step'] for row in history
                      if row['probe'] == row['probe']], [2, 4, 6, 7])

  @parameterized.parameters(
      (0.0, [1.0, 0.9, 0.9, 0.9, 0.2, 0.2], [4, 6]),  # Of the quarters of 10.
      (0.0, [1.0, 0.9, 0.4, 0.6, 0.6, 0.6], [6, 8, 10]),
      (0.4, [1.0, 0.9, 0.6, 0.6, 0.6, 0.6], []),
      (0.4, [1.0, 0.8, 0.8, 0.6, 0.6, 0.6], [4]))
  def test_each_quarter_it_says_what_is_not_on_course(
      self, chance, values, said):
    found = iter(values)
    with self.assertLogs(level='INFO') as logs:
      tiny.run(steps=10, probe=loop.Probe(
          measure=lambda theta: next(found), every=2, chance=chance))
    found = [re.search(r'not on course: after (\d+) of', x)
             for x in logs.output]
    self.assertEqual([int(x[1]) for x in found if x], said)


class RatesTest(parameterized.TestCase):
  """With a probe that falls once, a run of 40 steps decays 4 steps later."""

  def _run(self, keep=None, falls=0.5):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=9.0)
    rates = rates_lib.Rates(
        peak=0.25, warmup=2, steps=40, patience=4, cooldown=6)
    return tiny.run(
        tiny.problem(tx=tx, rates=rates), steps=40, keep=keep,
        probe=loop.Probe(every=2, measure=lambda theta: 1.0 - falls * (
            float(theta['w'][0]) != tiny.START[0])))

  def test_it_says_why_it_ends_early(self):
    with self.assertLogs(level='INFO') as logs:
      self._run()
    self.assertRegex('\n'.join(logs.output), 'The probe has not fallen by 0.02'
                     ' for 4 steps: .* training ends after step 12')

  def test_what_has_not_begun_to_fall_is_no_plateau(self):
    self.assertLen(self._run(falls=0.0)[1], 40)

  def test_each_step_has_its_rate_and_the_run_ends_after_the_decay(self):
    theta, history = self._run()
    self.assertLen(history, 12)  # The look at 6 is 4 after the first.
    rates = [0, 0.125, *[0.25] * 4, *(
        0.125 * (1 + np.cos(np.pi * k / 6)) for k in range(6))]
    np.testing.assert_allclose(
        theta['w'], np.array(tiny.START) * np.prod(1 - 2 * np.array(rates)),
        rtol=1e-5)

  @parameterized.parameters(3, 6, 9)
  def test_a_resumed_run_ends_equal(self, step):
    whole = tiny.Memory()
    theta, history = self._run(whole)
    got, rows = self._run(tiny.Memory(whole.states[step]))
    np.testing.assert_array_equal(got['w'], theta['w'])
    np.testing.assert_equal(rows, history)


if __name__ == '__main__':
  absltest.main()
