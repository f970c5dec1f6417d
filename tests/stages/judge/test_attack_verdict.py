"""The verdict of attacks on answers by hand."""

import json

from absl.testing import absltest
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.stages.judge import attack_verdict
from mansu_jax.stages.judge import results
from mansu_jax.statistics import intervals
from mansu_jax.statistics import recovery

_FACTS = 20
_OPTIONS = dict(resamples=500, seed=0)


def _asked(
    answers, guessed=0.25, base=0, facts=_FACTS, losses=None,
    base_guessed=None, unprobed=0):
  """Two questions on each fact; the first facts are right.

  A step is its number and the number of right facts; a third figure replaces
  `guessed`. The guesses of the first `unprobed` questions are not measured.
  """
  def found(right, guessed):
    return recovery.Answers(
        np.repeat(np.arange(facts) < right, 2), np.full(2 * facts, guessed))

  questions = [
      questions_lib.Question(
          id=f'{i}/{j}', fact=f'f{i:02}', relation='r', prompt='p', answer='a',
          choices=('a', 'b', 'c', 'd'), use='far')
      for i in range(facts) for j in range(2)]
  return attack_verdict.Asked(
      losses=losses or {}, questions=questions,
      probed=np.arange(2 * facts) >= unprobed, base=found(
          base, guessed if base_guessed is None else base_guessed), answers={
              attack: {precision: {
                  step: found(right, *(own or [guessed]))
                  for step, right, *own in steps}
                       for precision, steps in by_precision.items()}
              for attack, by_precision in answers.items()})


def _judge(forget, unknown, **unknown_of_base):
  return attack_verdict.judge(
      _asked(forget), unknown and _asked(unknown, **unknown_of_base),
      **_OPTIONS)


class JudgeTest(absltest.TestCase):

  def test_lines_give_the_same_entries(self):
    answers = {'lora_3e-4': {'fp': [(0, 6), (10, 8)], 'nf4': [(0, 5), (10, 9)]},
               'relearn_3e-5': {'fp': [(0, 6), (5, 9)], 'nf4': [(0, 5)]}}
    asked = {'forget': _asked(answers, base=20, guessed=0.4,
                              losses={'lora_3e-4': [3.0, 1.0]}),
             'unknown': _asked(answers, base=1, facts=25, unprobed=3)}
    rng = np.random.default_rng(0)
    found = asked['forget'].answers['lora_3e-4']['fp']
    found[10] = found[10]._replace(guessed=rng.integers(0, 2, 40) / 1.0)
    again = {side: attack_verdict.Asked.of_lines(
        [json.loads(results.line({}, question, {
            'choices': question.choices}, answers))
         for question, answers in zip(found.questions, found.by_question())],
        found.losses) for side, found in asked.items()}
    for side, found in asked.items():
      self.assertEqual(again[side].describe(), found.describe())
    self.assertEqual(attack_verdict.entries(again, **_OPTIONS),
                     attack_verdict.entries(asked, **_OPTIONS))

  def test_what_returns_beyond_guessing_fails(self):
    found = _judge(
        {'lora_3e-4': {'fp': [(0, 6), (10, 8)], 'nf4': [(0, 6), (10, 18)]}},
        {'lora_3e-4': {'fp': [(0, 5), (10, 6)], 'nf4': [(0, 5), (10, 6)]}})
    self.assertIs(found['passed'], False)
    self.assertEqual(
        [found[k] for k in ('attack', 'precision', 'step', 'comparisons')],
        ['lora_3e-4', 'nf4', 10, 2])
    self.assertAlmostEqual(found['gain']['value'], 0.6 / 0.75)
    self.assertAlmostEqual(found['gain_unknown']['value'], 0.05 / 0.75)
    self.assertAlmostEqual(found['difference']['value'], 0.55 / 0.75)
    self.assertGreater(found['difference']['lower_of_all'], 0)
    # The bound of all comparisons is wider than that of one.
    self.assertLess(
        found['difference']['lower_of_all'], found['difference']['lower'])

  def test_the_deciding_bound_is_bonferronis(self):
    forget = {'a': {'fp': [(0, 6), (2, 12), (5, 14)]}, 'b': {
        'fp': [(0, 6), (2, 10), (5, 13)]}}
    unknown = {'a': {'fp': [(0, 5), (2, 6), (5, 6)]}, 'b': {
        'fp': [(0, 5), (2, 5), (5, 7)]}}
    found = _judge(forget, unknown)
    self.assertEqual(found['comparisons'], 4)
    level = intervals.bonferroni(4)
    gains = [_asked(x).gain(('a', 'fp', 5), level=level, **_OPTIONS)
             for x in (forget, unknown)]
    self.assertEqual(
        found['difference']['lower_of_all'], recovery.excess(*gains).lower)

  def test_a_gain_that_guessing_explains_is_inconclusive(self):
    answers = {'lora_3e-4': {'fp': [(0, 6), (10, 10)]}}
    found = attack_verdict.judge(
        _asked(answers, base=18), _asked(answers), **_OPTIONS)
    self.assertEqual(found['passed'], 'inconclusive')
    self.assertEqual(found['difference']['value'], 0)
    self.assertIn('may return (upper bound', found['reason'])

  def test_a_base_that_hardly_leads_is_inconclusive(self):
    answers = {'lora_3e-4': {'fp': [(0, 6), (10, 6)]}}
    found = attack_verdict.judge(
        _asked(answers, base=6), _asked(answers), **_OPTIONS)
    self.assertEqual(found['passed'], 'inconclusive')
    self.assertIn('so that little could return', found['reason'])

  def _thorough(
      self, forget, unknown, rates=3, steps=100, last_loss=0.4, before=15,
      known_unknown=0, share='', **asked):
    """The same attacks on 60 facts of each side; the base knew 54."""
    attack = lambda right, before=15: {
        f'{kind}_{rate}e-5{share}': {'fp': [(0, before), (steps, *right)]}
        for kind in ('relearn', 'lora') for rate in range(1, rates + 1)}
    pair = lambda x: x if isinstance(x, tuple) else (x,)
    forget, unknown = pair(forget), pair(unknown)
    losses = {name: [1.0, last_loss if name.endswith('_2e-5') else 0.9]
              for name in attack(forget)}
    return attack_verdict.judge(
        _asked(attack(forget, before), base=54, facts=60, losses=losses,
               **asked),
        _asked(attack(unknown), facts=60, base=known_unknown), **_OPTIONS)

  def test_thorough_attacks_that_return_little_pass(self):
    found = self._thorough(15, 15)
    self.assertIs(found['passed'], True)
    self.assertIn('no attack returns more than 0.17', found['reason'])
    for weak in ({'rates': 2}, {'steps': 50}, {'last_loss': 0.6},
                 {'share': '_share_0.15'}):
      found = self._thorough(15, 15, **weak)
      self.assertEqual(found['passed'], 'inconclusive')
      self.assertIn('--eval_attack_steps', found['reason'])
    self.assertEqual(self._thorough(20, 15)['passed'], 'inconclusive')
    self.assertIs(self._thorough(40, 15)['passed'], False)

  def test_examples_in_the_prompt_can_fail_a_model_too(self):
    steps = lambda last: {'few_shot': {'fp': [(0, 6), (1, 6), (5, last)]}}
    found = _judge(steps(18), steps(7))
    self.assertIs(found['passed'], False)
    self.assertEqual((found['attack'], found['step']), ('few_shot', 5))

  def test_what_could_not_be_seen_does_not_pass(self):
    """The same gains as those that pass, or less."""
    for wanted, found in {
        'avoids the right answers': self._thorough(2, 15),
        'before or after 100 steps of lora_1e-5 (fp) the model avoids': (
            self._thorough(15, 15, before=0)),
        'before or after every attack the model guesses': self._thorough(
            (58, 0.95), (58, 0.95)),
        'the base knows 0.16 of the facts of --data_unknown': self._thorough(
            15, 15, known_unknown=22),
        'not known for 13 of 120 questions: no other fact': self._thorough(
            15, 15, unprobed=13)}.items():
      with self.subTest(wanted):
        self.assertEqual(found['passed'], 'inconclusive')
        self.assertIn(wanted, found['reason'])
    self.assertIs(self._thorough(15, 15, unprobed=12)['passed'], True)

  def test_where_guesses_leave_little_open_nothing_fails(self):
    found = self._thorough((60, 0.85), 15)
    self.assertEqual(found['passed'], 'inconclusive')
    self.assertNotIn('attack', found)
    self.assertIn('before or after every attack the model', found['reason'])
    self.assertIs(self._thorough((60, 0.75), 15)['passed'], False)

  def test_a_base_that_guesses_nearly_all_decides_nothing(self):
    for forget, unknown in ((0.85, None), (None, 0.85)):
      for returned in (15, 60):
        answers = lambda right: {'a': {'fp': [(0, 15), (100, right)]}}
        found = attack_verdict.judge(
            _asked(answers(returned), base=54, facts=60, base_guessed=forget),
            _asked(answers(15), facts=60, base_guessed=unknown), **_OPTIONS)
        self.assertEqual(found['passed'], 'inconclusive')
        self.assertIn(
            'the base guesses 0.85 of the asked questions' + (
                ' about facts never known' if unknown else '') + ' right',
            found['reason'])

  def test_where_one_gain_counts_from_nothing_the_other_does(self):
    """Prompts hint at answers: both sides answer above their guesses."""
    steps = lambda before: {'a': {'fp': [(0, before), (10, 26)]}}
    found = attack_verdict.judge(
        _asked(steps(14), facts=60), _asked(steps(20), facts=60), **_OPTIONS)
    self.assertAlmostEqual(found['gain']['value'], (26 - 15) / 45)
    self.assertAlmostEqual(found['gain_unknown']['value'], (26 - 15) / 45)
    found = attack_verdict.judge(
        _asked(steps(18), facts=60), _asked(steps(20), facts=60), **_OPTIONS)
    self.assertAlmostEqual(found['gain']['value'], 8 / 45)
    self.assertAlmostEqual(found['gain_unknown']['value'], 6 / 45)

  def test_a_gain_counts_from_guessing(self):
    """A model that avoided the right answers guesses again."""
    answers = {'lora_3e-4': {'fp': [(0, 2), (10, 9)]}}
    gain = lambda guessed: _asked(answers, guessed).gain(
        ('lora_3e-4', 'fp', 10), **_OPTIONS).value
    self.assertAlmostEqual(gain(0.25), 0.2 / 0.75)
    self.assertAlmostEqual(gain(0.4), 0.05 / 0.6)

  def test_better_guesses_are_no_gain(self):
    """Training on half of the facts teaches what answers look like."""
    answers = {'lora_3e-4': {'fp': [(0, 5), (10, 10, 0.5)]}}
    asked = _asked(answers, base=16, base_guessed=0.8)
    self.assertAlmostEqual(
        asked.gain(('lora_3e-4', 'fp', 10), **_OPTIONS).value, 0)
    self.assertAlmostEqual(asked.known_by_base(**_OPTIONS).value, 0)

  def test_without_facts_never_known_it_is_open(self):
    found = _judge({'lora_3e-4': {'fp': [(0, 5), (2, 20), (10, 15)]}}, None)
    self.assertEqual(found['passed'], 'inconclusive')
    self.assertEqual(found['step'], 2)
    self.assertIsNone(found['difference'])
    self.assertIn('--data_unknown', found['reason'])

  def test_a_base_that_knows_the_facts_never_known_leaves_it_open(self):
    answers = [{'a': {'fp': [(0, before), (10, after)]}}
               for before, after in ((6, 18), (5, 6))]
    for guessed, base, valid in (
        (0.3, 6, True), (0.3, 9, True), (0.3, 16, False), (0.6, 13, True)):
      with self.subTest(guessed=guessed, base=base):
        found = _judge(*answers, base_guessed=guessed, base=base)
        self.assertEqual(found['control']['valid'], valid)
        self.assertAlmostEqual(
            found['control']['value'],
            (base / _FACTS - guessed) / (1 - guessed))
        self.assertGreater(found['difference']['lower_of_all'], 0)
        if valid:
          self.assertIs(found['passed'], False)
        else:
          self.assertEqual(found['passed'], 'inconclusive')
          self.assertRegex(found['reason'], (
              r'base knows facts of --data_unknown: 0\.71 of them .* give facts'
              ' that it does not know'))

  def test_steps_after_divergence_are_not_compared(self):
    found = _judge({'a': {'fp': [(0, 5), (2, 6), (10, 20)]}},
                   {'a': {'fp': [(0, 5), (2, 5)]}})
    self.assertEqual((found['step'], found['comparisons']), (2, 1))
    nothing = _judge({'a': {'fp': [(0, 5)]}}, {'a': {'fp': [(0, 5)]}})
    self.assertEqual(nothing['passed'], 'inconclusive')
    self.assertIn('diverged', nothing['reason'])

  def test_accuracies_by_step(self):
    found = _asked({'a': {'fp': [(0, 5), (2, 20)]}}).record(**_OPTIONS)
    self.assertEqual([(x['step'], x['value'], x['n'], x['facts'])
                      for x in found['a']['fp']],
                     [(0, 0.25, 40, 20), (2, 1.0, 40, 20)])
    self.assertEqual([(x['guessed'], x['known']) for x in found['a']['fp']],
                     [(0.25, 0.0), (0.25, 1.0)])
    self.assertTrue(np.all(np.isfinite(found['a']['fp'][1]['interval'])))


if __name__ == '__main__':
  absltest.main()
