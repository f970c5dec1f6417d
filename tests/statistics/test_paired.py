"""Random signs against all signs, their level, and Holm's correction."""

import itertools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.statistics import paired


class SignFlipTest(parameterized.TestCase):

  def test_equals_all_signs(self):
    rng = np.random.default_rng(0)
    values, facts = rng.normal(0.4, 1, 24), [f'f{i // 3}' for i in range(24)]
    sums = values.reshape(8, 3).sum(1)
    every = np.array([np.dot(signs, sums) for signs in itertools.product(
        (-1, 1), repeat=8)])
    want = np.mean(np.abs(every) >= abs(sums.sum()) - 1e-9)
    self.assertAlmostEqual(
        paired.sign_flip_p(values, facts, draws=40_000), want, delta=0.01)

  def test_questions_of_a_fact_are_one_item(self):
    values = [1.0] * 50
    self.assertEqual(paired.sign_flip_p(values, ['one'] * 50), 1.0)
    self.assertLess(paired.sign_flip_p(values, list(map(str, range(50)))), 1e-3)

  @parameterized.parameters(0.05, 0.2)
  def test_errs_as_often_as_it_says(self, level):
    rng = np.random.default_rng(1)
    facts = [f'f{i // 2}' for i in range(40)]
    found = [paired.sign_flip_p(
        np.repeat(rng.integers(-1, 2, 20), 2), facts, draws=400, seed=i)
             for i in range(400)]
    share = np.mean(np.array(found) <= level)
    self.assertLessEqual(share, level + 0.03)
    self.assertGreater(share, level / 4)

  def test_bad_input(self):
    for values, facts in (([1.0], []), ([], []), ([[1.0]], ['a'])):
      with self.assertRaisesRegex(ValueError, 'wanted one fact for each'):
        paired.sign_flip_p(values, facts)


class HolmTest(absltest.TestCase):

  def test_by_hand(self):
    got = paired.holm({'a': 0.02, 'b': 0.5, 'c': 0.01, 'd': 0.9})
    self.assertEqual(got, {'a': 0.06, 'b': 1.0, 'c': 0.04, 'd': 1.0})
    self.assertEqual(paired.holm({}), {})


if __name__ == '__main__':
  absltest.main()
