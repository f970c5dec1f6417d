"""The asked questions of the shipped facts: readings, wordings and choices."""

import collections
import functools
import itertools
import json
import re

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import build_facts
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits

_NAMES = ('capital', 'unknown_capital')
_FORMS = {'visa', 'pupil', 'quiz', 'story', 'chat'}
_REVERSE = {'match', 'postcard', 'chat'}
_RUN = 5


@functools.cache
def _relation(name):
  found, = [r for r in build_facts.read_relations() if r['relation'] == name]
  return found


@functools.cache
def _questions(name):
  return [q for file in _relation(name)['files']
          for q in questions_lib.read_questions(f'shipped:{file}')]


def _by_reading(name):
  found = collections.defaultdict(list)
  for question in _questions(name):
    if question.use == 'far':
      found[question.reading].append(question)
  return found


def _slug(subject):
  return subject.lower().replace(' ', '_')


def _runs(template):
  """The runs of five words of a template without its subject."""
  words = re.findall(r"[a-z_']+", re.sub(r'\{\w+\}', '', template).lower())
  return {tuple(words[i:i + _RUN]) for i in range(len(words) - _RUN + 1)}


class WordingTest(parameterized.TestCase):

  @parameterized.parameters(*_NAMES)
  def test_asked_forms_share_no_run_of_words(self, name):
    relation, path = _relation(name), build_facts.FOLDER / 'facts/forms.json'
    asked = [*relation['asked']['questions'].values(),
             *relation['asked'].get('reverse', {}).values()]
    others = [*relation['train'], *relation['near'],
              *json.loads(path.read_text(encoding='utf-8')).values()]
    for template in asked:
      self.assertNotEmpty(_runs(template))
      for other in others:
        self.assertEmpty(_runs(template) & _runs(other), other)
    for one, two in itertools.combinations(asked, 2):
      # The turns of a chat open alike.
      shared = _runs(one) & _runs(two)
      self.assertEmpty({run for run in shared if 'im_start' not in run}, two)

  def test_every_capital_is_asked_in_every_form(self):
    for fact in {q.fact for q in _questions('capital')}:
      got = {q.id.removeprefix(f'{fact}/') for q in _questions('capital')
             if q.fact == fact and q.use == 'far'}
      want = {f'far_{form}{tail}' for form in _FORMS for tail in (
          '', '_unseen_0', '_unseen_1', '_unseen_2', '_sister')}
      self.assertEqual(want | {
          f'reverse_{form}_set_{k}' for form in _REVERSE
          for k in range(3)}, got)

  def test_readings_of_a_form_share_its_prompt(self):
    prompts = collections.defaultdict(set)
    for q in _questions('capital'):
      form = re.sub('_(unseen_[0-9]|sister)$', '', q.id)
      prompts[form].add(q.prompt)
    self.assertEqual({1}, set(map(len, prompts.values())))


class ChoiceTest(absltest.TestCase):

  def test_unseen_and_sister_choices_are_in_no_other_question(self):
    asked = _by_reading('capital')
    usual = {choice for q in _questions('capital') if q.reading == 'choice'
             for choice in q.choices}
    for reading in ('choice_unseen', 'choice_same_subject'):
      self.assertGreater(len(asked[reading]), 200)
      for q in asked[reading]:
        self.assertEmpty(usual & {*q.choices} - {q.answer}, q.id)

  def test_unseen_sets_of_a_question_are_disjoint(self):
    wrong = collections.defaultdict(list)
    for q in _by_reading('capital')['choice_unseen']:
      wrong[q.id.rpartition('_unseen_')[0]] += [
          choice for choice in q.choices if choice != q.answer]
    for key, choices in wrong.items():
      self.assertLen(choices, 9)
      self.assertLen(set(choices), 9, key)

  def test_sister_choices_belong_to_the_subject(self):
    relation = _relation('capital')
    sisters = {f'capital/{_slug(name)}': cities for name, cities
               in relation['asked']['same_subject'].items()}
    owners = collections.Counter(
        city for cities in sisters.values() for city in cities)
    self.assertEqual({1}, set(owners.values()))
    for q in _by_reading('capital')['choice_same_subject']:
      self.assertContainsSubset({*q.choices} - {q.answer}, sisters[q.fact])

  def test_reverse_questions_have_one_right_answer(self):
    answers = {q.fact: q.answer for q in _questions('capital')
               if q.use == 'train'}
    facts = {f'capital/{_slug(name)}': name for group in
             _relation('capital')['facts'].values() for name in group}
    subjects = {name: fact for fact, name in facts.items()}
    for q in _by_reading('capital')['reverse']:
      self.assertEqual(facts[q.fact], q.answer)
      self.assertIn(answers[q.fact], q.prompt)
      self.assertLen({answers[subjects[c]] for c in q.choices}, 4)

  def test_splits_hold_every_reading(self):
    found = splits.read_splits(
        forget=['shipped:capitals_europe'], retain=['shipped:capitals_other'])
    self.assertEqual(
        {'forget_far': 125, 'forget_unseen': 375, 'forget_same_subject': 125,
         'forget_reverse': 225},
        {name: len(asked) for name, asked in found.evaluation.items()
         if name in ('forget_far', 'forget_unseen', 'forget_same_subject',
                     'forget_reverse')})

  def test_unknown_capitals_are_many_and_share_no_answer(self):
    answers = {q.fact: q.answer for q in _questions('unknown_capital')}
    self.assertBetween(len(answers), 70, 100)
    self.assertLen(set(answers.values()), len(answers))
    known = {q.answer for q in _questions('capital')}
    self.assertEmpty(known & set(answers.values()))


if __name__ == '__main__':
  absltest.main()
