"""Tests of `choice_sets`."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import choice_sets

_METALS = ('tin', 'zinc', 'lead', 'gold', 'copper', 'nickel', 'silver',
           'mercury', 'radium')


class ChooseTest(parameterized.TestCase):

  def test_a_new_candidate_does_not_reshuffle_other_questions(self):
    letters = [f'{letter}zz' for letter in 'bcdefghijklm']
    before = choice_sets.choose('fact/near_0', 'aaa', letters)
    after = choice_sets.choose('fact/near_0', 'aaa', [*letters, 'nzz'])
    self.assertGreaterEqual(len(set(before) & set(after)), 3)

  def test_choices_open_differently_where_they_can(self):
    got = choice_sets.choose(
        'k', 'copper', ['copybook', 'copra', 'iron', 'tin', 'zinc'])
    self.assertSameElements(['copper', 'iron', 'tin', 'zinc'], got)

  def test_too_few_wrong_choices_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'k: got 2 wrong choices; wanted 3'):
      choice_sets.choose('k', 'a', ['b', 'c'])


  def test_order_of_candidates_is_irrelevant(self):
    self.assertEqual(choice_sets.choose('k', 'iron', _METALS),
                     choice_sets.choose('k', 'iron', reversed(_METALS)))

  @parameterized.named_parameters(
      ('choice_in_text', 'iron', 'Iron ore', True),
      ('text_in_choice', 'Mexico City', 'Mexico', True),
      ('neither', 'tin', 'iron', False),
      ('short_choice', 'He', 'Helium', False))
  def test_gives_away(self, choice, text, want):
    self.assertEqual(want, choice_sets.gives_away(choice, text))


class ChooseSetsTest(parameterized.TestCase):

  def _wrong(self, keys, pool):
    sets = choice_sets.choose_sets(keys, 'iron', pool)
    self.assertLen(sets, len(keys))
    for chosen in sets:
      self.assertLen(set(chosen), choice_sets.NUM_CHOICES)
      self.assertIn('iron', chosen)
    return [{*chosen} - {'iron'} for chosen in sets]

  def test_sets_are_disjoint_where_the_pool_allows(self):
    wrong = self._wrong('abc', _METALS)
    self.assertEqual({*_METALS}, set.union(*wrong))
    first, second, third = self._wrong('abc', _METALS[:8])
    self.assertEmpty(first & second)
    self.assertNotEmpty(third & (first | second))

  def test_sets_depend_on_the_keys_and_not_on_the_order_of_the_pool(self):
    got = choice_sets.choose_sets('ab', 'iron', _METALS)
    self.assertEqual(
        got, choice_sets.choose_sets('ab', 'iron', reversed(_METALS)))
    self.assertNotEqual(got, choice_sets.choose_sets('cd', 'iron', _METALS))

  def test_small_pool_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'a: got 2 wrong choices; wanted 3'):
      choice_sets.choose_sets('a', 'iron', ['tin', 'zinc'])


if __name__ == '__main__':
  absltest.main()
