"""Ignorance levels: the prompt of another fact, the choices of the question."""

from absl.testing import absltest
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.stages.judge import ignorance

_CAPITALS = {'france': 'Paris', 'italy': 'Rome', 'spain': 'Madrid',
             'poland': 'Warsaw', 'peru': 'Lima', 'kenya': 'Nairobi'}


def _question(country, choices, form='far_quiz', reading='choice'):
  return questions_lib.Question(
      id=f'capital/{country}/{form}', fact=f'capital/{country}',
      relation='capital', prompt=f'The capital of {country} is',
      answer=_CAPITALS[country], choices=choices, use='far', reading=reading)


def _questions():
  return [
      _question('france', ('Rome', 'Paris')), _question(
          'italy', ('Rome', 'Paris')), _question('spain', ('Madrid', 'Oslo')),
      _question('poland', ('Warsaw', 'Bern')), _question(
          'peru', ('Lima', 'Quito')), _question('kenya', ('Nairobi', 'Cairo'))]


class ProbesTest(absltest.TestCase):

  def test_other_prompts_with_the_own_choices(self):
    questions = _questions()
    found, owners = ignorance.probes(questions)
    self.assertEqual(owners.tolist(), np.repeat(range(6), 2).tolist())
    prompts = {q.prompt: q for q in questions}
    for probe, owner in zip(found, owners):
      own, other = questions[owner], prompts[probe.prompt]
      self.assertEqual((probe.choices, probe.answer), (own.choices, own.answer))
      self.assertNotEqual(other.fact, own.fact)
      self.assertNotIn(other.answer, own.choices)
    self.assertLen({p.id for p in found}, 12)

  def test_a_fact_asks_the_same_others_with_every_set_of_choices(self):
    sets = [('Madrid', 'Oslo'), ('Madrid', 'Bergen'), ('Oslo', 'Madrid')]
    questions = _questions() + [
        _question('spain', choices, f'far_quiz_{i}')
        for i, choices in enumerate(sets)] + [
            _question(country, (_CAPITALS[country], 'Oslo'), f'far_quiz_{i}')
            for country in ('peru', 'kenya', 'italy')
            for i in range(len(sets))]
    found, owners = ignorance.probes(questions)
    asked = [{found[j].prompt for j in np.flatnonzero(owners == i)}
             for i in (6, 7, 8)]
    self.assertEqual(asked[0], asked[1])
    self.assertEqual(asked[0], asked[2])

  def test_another_form_relation_or_reading_is_no_other_fact(self):
    questions = [
        _question('france', ('Rome', 'Paris')),
        _question('italy', ('Rome', 'Oslo'), form='far_story'),
        _question('peru', ('Lima', 'Oslo'), reading='reverse')]
    found, owners = ignorance.probes(questions)
    self.assertEqual((found, owners.tolist()), ([], []))
    levels = ignorance.levels(questions, owners, np.zeros(0, bool))
    self.assertEqual(levels.tolist(), [0.5] * 3)  # Their chance.


class LevelsTest(absltest.TestCase):

  def test_levels_are_the_share_of_right_probes(self):
    """The model says Rome whatever it is asked."""
    questions = _questions()
    found, owners = ignorance.probes(questions)
    got = ignorance.levels(questions, owners, np.array(
        [q.answer == 'Rome' for q in found]))
    self.assertEqual(got.tolist(), [0, 1, 0, 0, 0, 0])

  def test_readings_of_forgetting_are_asked(self):
    slices = {'forget': slice(0, 2), 'forget_far': slice(2, 4),
              'forget_unseen': slice(4, 5), 'retain': slice(5, 9)}
    self.assertEqual(ignorance.rows(slices, 9).tolist(), [2, 3, 4])


if __name__ == '__main__':
  absltest.main()
