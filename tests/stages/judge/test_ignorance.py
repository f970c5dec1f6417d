"""Ignorance levels: the prompt of another fact, the choices of the question."""

import dataclasses

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


  def test_probes_that_the_model_cannot_read_are_left_out(self):
    first, *others = _questions()[2:5]  # Each is asked as the two others.
    questions = [dataclasses.replace(first, prompt=f'Once: {first.prompt}'), *(
        dataclasses.replace(q, choices=(*q.choices, 'Ouagadougou'))
        for q in others)]
    tokenizer = lambda texts, add_special_tokens=False: {
        'input_ids': [[ord(c) for c in text] for text in texts]}
    found, owners = ignorance.probes(questions)
    most = max(len(questions[0].prompt) + len(' Madrid'), *(
        len(q.prompt) + len(' Ouagadougou') for q in others))
    kept, kept_owners = ignorance.readable_probes(
        questions, tokenizer, chat=False, max_length=most)
    fits = [len(q.prompt) + 1 + max(map(len, q.choices)) <= most for q in found]
    self.assertEqual(sum(fits), 4)
    self.assertEqual(kept, [q for q, fit in zip(found, fits) if fit])
    self.assertEqual(kept_owners.tolist(), owners[fits].tolist())
    shorter, none = ignorance.readable_probes(
        questions, tokenizer, chat=False, max_length=5)
    self.assertEqual((shorter, none.tolist()), ([], []))


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
