"""What attacks teach and ask, and the flags that are refused."""

import dataclasses
import types

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.stages.prepare import reteaching


def _ask(role, i, use, reading='choice'):
  wrong = tuple(f'{role}{(i + j) % 8}' for j in (1, 2, 3))
  if reading == 'choice_unseen':
    wrong = tuple(f'new {i} {j}' for j in range(3))
  return questions_lib.Question(
      id=f'{role}/{i}/{use}/{reading}', fact=f'{role}/{i}', relation=role,
      prompt=f'{use} {reading} {role} {i}', answer=f'{role}{i}',
      choices=(f'{role}{i}', *wrong), use=use, reading=reading)


def _set(role, facts=8, readings=('choice',)):
  return [_ask(role, i, use, reading) for i in range(facts)
          for use, reading in (('train', 'choice'), *(
              ('far', reading) for reading in readings))]


def _inputs(**roles):
  sets = {'forget': _set('forget'), 'retain': _set('retain', 2), 'heldout': [],
          'text': []} | roles
  splits = splits_lib.build_splits(**sets, require_train=False)
  return types.SimpleNamespace(
      splits=splits, evaluation=splits.evaluation)


def _options(**changes):
  return dataclasses.replace(run_config.EvalConfig(), **changes)


class SidesTest(parameterized.TestCase):

  @parameterized.parameters(range(3))
  def test_taught_and_asked_facts_and_answers_are_disjoint(self, seed):
    found = reteaching.forgotten(_options(), _inputs(), seed)
    taught, asked = ({q.fact for q in questions} for questions in (
        found.taught, found.questions))
    self.assertLen(taught, 4)
    self.assertEmpty(taught & asked)
    answers = {q.answer for q in found.taught}
    for question in found.questions:
      self.assertNotEqual(question.use, 'train')
      self.assertEmpty(answers & set(question.choices))
    self.assertEqual({q.use for q in found.taught}, {'train'})

  def test_unseen_choices_are_asked_where_there_are_any(self):
    both = _set('forget', readings=('choice', 'choice_unseen'))
    found = reteaching.forgotten(_options(), _inputs(forget=both), 0)
    self.assertEqual({q.reading for q in found.questions}, {'choice_unseen'})
    self.assertEqual(found.describe() | {'base': 1}, {
        'taught_facts': 4, 'asked_facts': 4, 'questions': 4, 'narrowed': 0,
        'dropped': 0, 'reading': 'choice_unseen', 'chance': 0.25, 'base': 1})
    plain = reteaching.forgotten(_options(), _inputs(), 0)
    self.assertEqual(plain.reading, 'choice')
    self.assertGreater(plain.describe()['narrowed'], 0)
    self.assertGreater(plain.describe()['chance'], 0.25)

  def test_facts_never_known_are_divided_alike(self):
    self.assertIsNone(reteaching.never_known(_options(), _inputs(), 0))
    unknown = _set('unknown', 40, ('choice_unseen',))
    found = reteaching.never_known(
        _options(attack_questions=7), _inputs(unknown=unknown), 0)
    self.assertLen({q.fact for q in found.taught}, 20)
    self.assertLen(found.questions, 7)

  def test_smaller_shares_are_parts_of_what_is_taught(self):
    side = reteaching.forgotten(
        _options(), _inputs(forget=_set('forget', 40)), 0)
    facts = lambda share: {q.fact for q in side.taught_share(share, 0)}
    self.assertEqual(side.taught_share(0.5, 0), side.taught)
    self.assertLen(facts(0.25), 10)
    self.assertLess(facts(0.25), facts(0.5))
    self.assertLen(facts(0.001), 1)

  def test_facts_that_share_answers_are_taught_together(self):
    shared = [dataclasses.replace(
        q, answer=f'a{int(q.fact.split("/")[1]) // 4}',
        choices=('x', f'a{int(q.fact.split("/")[1]) // 4}'))
              for q in _set('forget', 49)]
    side = reteaching.forgotten(_options(), _inputs(forget=shared), 0)
    for share in 0.001, 0.02, 0.05:
      taught = side.taught_share(share, 0)
      self.assertBetween(len({q.fact for q in taught}), 1, 4)
      answers = {q.answer for q in taught}
      self.assertEqual(
          taught, [q for q in side.taught if q.answer in answers])

  @parameterized.parameters(
      (('choice',), ('choice', 'choice_unseen'), 'choice'),
      (('choice', 'choice_unseen'), ('choice', 'choice_unseen'),
       'choice_unseen'),
      (('choice', 'choice_unseen'), ('choice',), 'choice'))
  def test_facts_never_known_are_asked_like_forgotten_ones(
      self, forget, unknown, reading):
    inputs = _inputs(forget=_set('forget', readings=forget),
                     unknown=_set('unknown', readings=unknown))
    found = reteaching.never_known(_options(), inputs, 0)
    self.assertEqual(found.reading, reading)
    self.assertEqual({q.reading for q in found.questions}, {reading})

  def test_too_few_facts(self):
    with self.assertRaisesRegex(
        reteaching.TooFewFacts, 'questions about taught facts for 1 facts'):
      reteaching.forgotten(_options(), _inputs(forget=_set('forget', 3)), 0)
    with self.assertRaisesRegex(reteaching.TooFewFacts, 'for 0 facts'):
      reteaching.forgotten(_options(), _inputs(forget=[]), 0)


class CheckTest(parameterized.TestCase):

  def test_accepts(self):
    reteaching.check(_options(), _inputs(), 0)
    reteaching.check(_options(), _inputs(forget=_set('forget', 2)), 0)
    reteaching.check(_options(attacks=()), _inputs(), 0)
    reteaching.check(_options(attacks=('benign',)), _inputs(), 0)
    reteaching.check(
        _options(), _inputs(unknown=_set('unknown', readings=(
            'choice_unseen',))), 0)

  @parameterized.parameters(
      ({'attacks': ('prune',)}, {}, "--eval_attacks=prune has 'prune'"),
      ({'attack_rates': ('x',)}, {}, "--eval_attack_rates=x has 'x'"),
      ({'attack_shares': ('0.7',)}, {}, "--eval_attack_shares=0.7 has '0.7'"),
      ({'attacks': ('benign',)}, {'retain': []}, 'nothing to fine-tune on'),
      ({}, {'unknown': _set('unknown', 3)},
       '--data_unknown: the unknown set has .* for 1 facts'))
  def test_refuses(self, changes, roles, message):
    with self.assertRaisesRegex(ValueError, message):
      reteaching.check(_options(**changes), _inputs(**roles), 0)

  def test_an_unknown_fact_has_one_role(self):
    with self.assertRaisesRegex(ValueError, 'also in the forget set'):
      _inputs(unknown=_set('forget'))


if __name__ == '__main__':
  absltest.main()
