"""Taught and asked facts share no answer."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.attacks import taught_facts
from mansu_jax.data import questions as questions_lib


def _ask(fact, answer, *wrong, use='far'):
  return questions_lib.Question(
      id=f'{fact}/{use}', fact=fact, relation='r', prompt=f'Of {fact}:',
      answer=answer, choices=(*wrong, answer), use=use)


class ChooseTest(parameterized.TestCase):

  def test_without_shared_answers_half_of_the_facts_are_taught(self):
    facts = [f'fact/{i}' for i in range(9)]
    pairs = [(fact, fact) for fact in facts]
    chosen = taught_facts.choose(pairs, 0)
    # As a permutation of the sorted names draws them.
    self.assertEqual(
        chosen, set(np.random.default_rng(0).permutation(facts)[:4]))
    self.assertEqual(taught_facts.choose(pairs[::-1] * 2, 0), chosen)
    self.assertNotEqual(taught_facts.choose(pairs, 1), chosen)

  def test_a_share_of_the_facts(self):
    pairs = [(f'fact/{i}',) * 2 for i in range(40)]
    for n, share, want in (40, 0.15, 6), (100, 0.29, 29), (49, 1 / 49, 1):
      some = [(f'fact/{i}',) * 2 for i in range(n)]
      self.assertLen(taught_facts.choose(some, 0, share), want)
    self.assertLess(taught_facts.choose(pairs, 0, 0.15),
                    taught_facts.choose(pairs, 0))

  @parameterized.parameters(range(8))
  def test_facts_that_share_an_answer_stay_together(self, seed):
    # b and d are linked through c, which has two answers.
    pairs = [('a', 'x'), ('b', 'Y'), ('c', ' y'), ('c', 'z'), ('d', 'z'),
             ('e', 'u'), ('f', 'v'), ('g', 'v'), ('h', 'w')]
    taught = taught_facts.choose(pairs, seed)
    self.assertBetween(len(taught), 3, 4)
    answers = lambda side: {
        answer.strip().lower() for fact, answer in pairs if (
            fact in taught) == side}
    self.assertEmpty(answers(True) & answers(False))

  def test_a_group_larger_than_half_is_not_taught(self):
    pairs = [(fact, 'same') for fact in 'abcd'] + [('e', 'other')]
    for seed in range(4):
      self.assertEqual(taught_facts.choose(pairs, seed), {'e'})


class UntaughtTest(absltest.TestCase):

  def test_taught_answers_are_no_choices(self):
    taught = [_ask('a', 'Rome', 'Bonn', use='train'),
              _ask('b', 'Oslo', 'Bonn', use='train')]
    asked = [_ask('a', 'Rome', 'Bonn'), _ask('c', 'Lima', 'ROME', 'Bonn'),
             _ask('d', 'Kyiv', 'Rome', 'Oslo'), _ask('e', 'Riga', 'Bonn'),
             _ask('f', 'oslo', 'Bonn', 'Bern')]
    found = taught_facts.untaught(asked, taught)
    self.assertEqual([(q.fact, q.choices) for q in found.questions], [
        ('c', ('Bonn', 'Lima')), ('e', ('Bonn', 'Riga'))])
    self.assertEqual(found.narrowed, {'c/far'})
    self.assertEqual(found.dropped, 2)  # d has no wrong choice; f was taught.


class ShownTest(absltest.TestCase):

  def test_solved_questions_of_the_relation_come_first(self):
    taught = [_ask('a', 'Rome', 'Bonn', use='train'),
              _ask('a2', 'rome', 'Bonn', use='train'),
              _ask('b', 'Oslo', 'Bonn', use='train'),
              dataclasses.replace(_ask('c', 'Lima', 'Bonn'), relation='s')]
    asked = [_ask('d', 'Kyiv', 'Bern'), _ask('e', 'Riga', 'Bern')]
    for seed in range(4):
      one, other = taught_facts.shown(asked, taught, 2, seed)
      before = one.prompt.removesuffix('Of d:')
      self.assertEqual(other.prompt, f'{before}Of e:')
      self.assertIn('Of b: Oslo\n\n', before)
      self.assertEqual('Of a: Rome' in before, 'Of a2: rome' not in before)
      self.assertNotIn('Lima', before)
      self.assertEqual(one, dataclasses.replace(asked[0], prompt=one.prompt))
    three, _ = taught_facts.shown(asked, taught, 9, 0)
    self.assertEqual(three.prompt.count('\n\n'), 3)  # All that differ.
    self.assertEndsWith(three.prompt, 'Of c: Lima\n\nOf d:')
    self.assertEqual(taught_facts.shown(asked, taught, 0, 0), asked)


if __name__ == '__main__':
  absltest.main()
