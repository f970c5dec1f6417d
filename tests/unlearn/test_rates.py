"""The rate of each step and the plateau, by hand."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import optax

from mansu_jax.unlearn import rates


class RatesTest(parameterized.TestCase):

  def _rates(self, **changes):
    return rates.Rates(**dict(
        peak=1.0, warmup=2, steps=50, patience=10, cooldown=8) | changes)

  @parameterized.parameters(
      (0.9, [], None), (0.9, [(5, 0.9), (10, 0.5), (15, 0.2)], None),
      (0.9, [(5, 0.9), (10, 0.9), (15, 0.9), (30, 0.9)], None),  # Not begun.
      (0.9, [(5, 0.9), (20, 0.5), (25, 0.5), (30, 0.5)], 30),  # Since 20.
      (0.9, [(5, 0.5), (10, 0.49), (15, 0.485), (20, 0.47)], 15),
      (0.9, [(5, 0.5), (10, 0.49), (14, 0.47), (20, 0.46)], None),
      (0.9, [(5, 0.5), (30, 0.4), (39, 0.4), (42, 0.4)], None))  # It decays.
  def test_it_begins_once_the_probe_has_fallen_and_stays(
      self, before, looks, want):
    self.assertEqual(self._rates().decays_from([(0, before), *looks]), want)

  def test_it_ends_after_the_cooldown_but_not_after_the_last_step(self):
    of = self._rates()
    self.assertEqual([of.end(b) for b in (None, 15, 47)], [50, 23, 50])
    for begin, end in ((None, 50), (15, 23)):
      sizes = np.array([of(step, begin) for step in range(end)])
      np.testing.assert_array_equal(sizes[2:end - 7], 1.0)
      self.assertTrue(np.all(np.diff(sizes[end - 8:]) < 0))
      self.assertLess(sizes[-1], 0.05)

  @parameterized.parameters((0, 10), (5, 40), (0, 1))
  def test_without_patience_it_decays_from_the_warmup(self, warmup, steps):
    of = self._rates(warmup=warmup, steps=steps, patience=0)
    want = optax.cosine_decay_schedule(1.0, max(steps - warmup, 1))
    if warmup:
      want = optax.warmup_cosine_decay_schedule(0.0, 1.0, warmup, steps)
    self.assertIsNone(of.decays_from([(0, 0.9), (3, 0.2), (20, 0.2)]))
    self.assertEqual(of.end(None), steps)
    np.testing.assert_allclose(
        [of(step, None) for step in range(steps)],
        [want(step) for step in range(steps)], atol=1e-6)

  def test_short_runs_decay_too(self):
    of = self._rates(steps=5)
    self.assertEqual([of(s, None) for s in range(5)][:3], [0.0, 0.5, 1.0])
    self.assertLess(of(4, None), 0.5)


if __name__ == '__main__':
  absltest.main()
