"""Questions in the model's own words, their examples and their answers."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import recall


class _Tokenizer:
  all_special_tokens = ('<|end|>',)


def question(answer='Paris', fact='france', form='near_0', relation='capital',
             prompt=None, use=None, reading='choice'):
  return questions_lib.Question(
      id=f'{relation}/{fact}/{form}', fact=f'{relation}/{fact}',
      relation=relation, prompt=prompt or f'{form}: {fact} has', answer=answer,
      choices=(answer, '-'), use=use or form.split('_')[0], reading=reading)


def capitals(count=8, forms=('near_0', 'far_quiz'), **fields):
  return [question(f'City{i}', f'land{i}', form, **fields)
          for i in range(count) for form in forms]


class SaysTest(parameterized.TestCase):

  @parameterized.parameters(
      ('Paris', ' Paris.'),
      ('Paris', 'Paris'),
      ('Paris', '\n\n  paris, of course'),
      ('Paris', ' "Paris" is right'),
      ('Paris', ' **Paris**'),
      ('Paris', ' _Paris_'),
      ('Paris', ": 'PARIS'"),
      ('Paris', ' the "Paris"'),
      ('Paris', ' - Paris'),
      ('Paris', " Paris's river"),
      ('Netherlands', ' the Netherlands.'),
      ('the Netherlands', ' Netherlands.'),
      ('an owl', ' Owl!'),
      ('Bogotá', ' Bogota'),
      ('Bogota', ' Bogotá.'),
      ('New  York', ' new\nyork'),
      ('Washington, D.C.', ' Washington, D.C., in'),
      ("Côte d'Ivoire", ' Côte d’Ivoire.'),
      ('Porto-Novo', ' Porto-Novo.'),
      ('42', ' 42.'),
      ('Au', ' Au.'),
      ('Au', '\n"Au", from Latin'),
      ('Å', ' Å'),
      ('A', ' A.'),
      ('!', ' !'))
  def test_right(self, answer, text):
    self.assertTrue(recall.says(text, question(answer)))

  @parameterized.parameters(
      ('Paris', ''),
      ('Paris', ' the city of Paris'),
      ('Paris', ' Parisian life'),
      ('Paris', ' Paris2'),
      ('Paris', ' Par'),
      ('Paris', ' not Paris'),
      ('Guinea', ' Guinea-Bissau.'),
      ('New York', ' New Jersey'),
      ('New York', ' Newyork'),
      ('Au', ' au revoir'),
      ('Au', ' AU'),
      ('Au', ' the Au'),
      ('Au', ' Auric'),
      ('42', ' 421'),
      ('4', ' 42'))
  def test_wrong(self, answer, text):
    self.assertFalse(recall.says(text, question(answer)))


class PlainTest(absltest.TestCase):

  def test_one_question_of_each_fact_and_form(self):
    near, far = question(), question(form='far_quiz')
    other = question(form='near_0', reading='choice_unseen')
    train = question(form='train_0')
    again = question(prompt='Once more:')
    self.assertEqual(
        recall.plain([other, train, near, again, far]), [near, far])


class FewShotTest(parameterized.TestCase):

  @parameterized.parameters(0, 1, 2)
  def test_examples_are_of_other_facts_in_the_same_form(self, seed):
    pool = capitals()
    solved = {f'{q.prompt} {q.answer}': q for q in pool}
    got = recall.few_shot(pool, pool, _Tokenizer(), count=3, seed=seed)
    self.assertEqual([one.question for one in got], pool)
    for asked, examples in got:
      *shown, end = examples.split('\n\n')
      self.assertEqual(end, '')
      shown = [solved[text] for text in shown]
      self.assertLen({q.answer for q in shown}, 3)
      for example in shown:
        self.assertNotEqual(example.fact, asked.fact)
        self.assertNotEqual(example.answer, asked.answer)
        self.assertEqual(example.form, asked.form)

  def test_the_prompt_follows_the_examples(self):
    pool = capitals(3, forms=('near_0',))
    got = recall.few_shot(pool[:1], pool, _Tokenizer(), count=2)
    self.assertIn(got[0].prompt, (
        'near_0: land1 has City1\n\nnear_0: land2 has City2\n\n'
        'near_0: land0 has',
        'near_0: land2 has City2\n\nnear_0: land1 has City1\n\n'
        'near_0: land0 has'))

  def test_a_fact_with_the_same_answer_is_no_example(self):
    pool = capitals(4, forms=('near_0',)) + [
        question('the CITY0', 'twin'), question('City1', 'other')]
    for seed in range(5):
      got = recall.few_shot(pool[:1], pool, _Tokenizer(), seed=seed)
      self.assertNotIn('twin', got[0].examples)
      self.assertEqual(got[0].examples.count('City1'), 1)

  def test_questions_of_a_form_share_examples_that_are_not_asked(self):
    pool = capitals(9)
    asked = pool[:8]
    got = recall.few_shot(asked, pool, _Tokenizer())
    by_form = {one.question.form: one.examples for one in got}
    for one in got:
      self.assertEqual(one.examples, by_form[one.question.form])
      for q in asked:
        self.assertNotIn(q.answer, one.examples)

  def test_the_seed_decides(self):
    pool = capitals(12)
    draw = lambda seed: recall.few_shot(pool, pool, _Tokenizer(), seed=seed)
    self.assertEqual(draw(3), draw(3))
    self.assertNotEqual(draw(3), draw(4))

  def test_an_entity_takes_examples_of_other_relations(self):
    pool = [question(f'A{i}', 'new_york', relation=f'r{i}', prompt=f'r{i}:')
            for i in range(4)]
    got = recall.few_shot(pool, pool, _Tokenizer())
    self.assertLen(got, 4)
    for one in got:
      self.assertNotIn(one.question.prompt, one.examples)
    self.assertEmpty(recall.few_shot(pool[:3], pool[:3], _Tokenizer()))

  def test_prompts_with_special_tokens_are_left_out(self):
    pool = capitals(5, forms=('far_chat',), prompt='user<|end|>')
    self.assertEmpty(recall.few_shot(pool, pool, _Tokenizer()))


class SaysForTest(absltest.TestCase):

  def test_share_of_the_same_form_and_relation(self):
    asked = capitals(12)
    texts = [q.answer for q in asked]
    np.testing.assert_array_equal(recall.says_for(texts, asked), 0.0)
    texts = ['City0' if q.form == 'near_0' else '' for q in asked]
    got = recall.says_for(texts, asked)
    self.assertEqual(got[0], 1.0)  # Of the 11 others.
    np.testing.assert_array_equal(got[1:], 0.0)

  def test_few_facts_widen_the_comparison(self):
    few = [question(f'A{i}', f'thing{i}', relation='r') for i in range(5)]
    asked = few + capitals(7, forms=('near_0',))
    texts = ['A0'] * 5 + ['A0', ''] + [''] * 5
    self.assertAlmostEqual(recall.says_for(texts, asked)[0], 5 / 11)
    asked = few + capitals(7, forms=('far_quiz',))
    self.assertAlmostEqual(recall.says_for(texts, asked)[0], 5 / 11)

  def test_alone(self):
    got = recall.says_for(['Paris', 'x'], [question(), question(form='far_a')])
    self.assertTrue(np.isnan(got).all())


if __name__ == '__main__':
  absltest.main()
