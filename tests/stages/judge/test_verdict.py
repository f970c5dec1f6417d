"""Measurements -> properties: thresholds against intervals, jointly."""

import dataclasses
import json
import types

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.eval import accuracy
from mansu_jax.eval import perplexity
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import verdict

_SPLITS = ('forget', 'forget_paraphrase', 'forget_far', 'retain',
           'retain_heldout')


def _text(nll, tokens):
  return perplexity.TextLoss(
      window_nll=np.array([nll]), window_tokens=np.array([tokens]))


class _Case:
  """Questions of splits and the answers of both models, by precision.

  Args:
    sizes: {split: facts}, with two questions a fact.
    right: {(model, precision): {split: share of facts answered}}; the first
      facts are the right ones. Splits that are not named are all right.
  """

  def __init__(self, sizes, right=None, texts=None):
    self.questions, self.slices = [], {}
    for split in _SPLITS:
      start = len(self.questions)
      for fact in range(sizes.get(split, 0)):
        for form in ('t1', 'q2'):
          self.questions.append(questions_lib.Question(
              id=f'{split}{fact}/{form}', fact=f'{split}{fact}',
              relation=f'relation{fact % 2}', prompt='p', answer='a',
              choices=('a', 'b', 'c', 'd'), use='near'))
      self.slices[split] = slice(start, len(self.questions))
    self.measured = {}
    for model in evaluation.MODELS:
      for precision in ('fp', 'nf4', 'int8'):
        shares = (right or {}).get((model, precision), {})
        correct = np.concatenate([
            np.repeat(np.arange(n) < shares.get(s, 1.0) * n, 2)
            for s, n in ((s, sizes.get(s, 0)) for s in _SPLITS)])
        self.measured[model, precision] = evaluation.Measured(
            scores=accuracy.Scores(
                logprob=None, answer_logprob=None, correct=correct,
                correct_norm=~correct, margin=None),
            texts=(texts or {}).get((model, precision), {}))

  def answers(self):
    evaluator = types.SimpleNamespace(
        questions=self.questions, slices=self.slices)
    return verdict.Answers(evaluator, self.measured, resamples=500, seed=0)


def _shares(fp, nf4=None, *, base=1.0, splits=_SPLITS):
  """Right shares of the unlearned model, on all splits alike."""
  out = {('base', p): dict.fromkeys(splits, base) for p in (
      'fp', 'nf4', 'int8')}
  for precision, share in (('fp', fp), ('nf4', fp if nf4 is None else nf4)):
    out['unlearned', precision] = dict.fromkeys(splits, share)
  return out


def _far_and_near(facts):
  return {'forget_paraphrase': facts // 2, 'forget_far': facts - facts // 2}


class ForgettingTest(parameterized.TestCase):

  def _property(self, facts, share, base=1.0):
    case = _Case(_far_and_near(facts), _shares(share, base=base))
    return verdict.property_f(case.answers(), ('fp', 'nf4'))

  @parameterized.parameters(
      # phi = (1 - share) / (1 - 0.25), 0.9 is wanted.
      (200, 0.20, True, 0.8 / 0.75), (200, 0.50, False, 0.5 / 0.75),
      (200, 0.32, 'inconclusive', 0.68 / 0.75),
      (8, 0.25, 'inconclusive', 1.0))
  def test_threshold_against_the_interval(self, facts, share, want, phi):
    got = self._property(facts, share)
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertAlmostEqual(got['value'], phi, places=6)
    self.assertEqual(got['threshold'], 0.9)
    low, high = got['interval']
    self.assertTrue(low <= got['value'] <= high)
    self.assertEqual(got['n'], 2 * facts)
    self.assertEqual(set(got['by_precision']), {'fp', 'nf4'})

  def test_one_remembered_phrasing_fails_forgetting(self):
    """Avoidance in the others does not make up for it."""
    case = _Case({'forget_far': 100, 'forget_paraphrase': 100}, _shares(0.0))
    pooled = verdict.property_f(case.answers(), ('fp', 'nf4'))
    self.assertIs(pooled['passed'], True)
    self.assertEqual(pooled['worst_form']['value'], 4 / 3)
    far = np.arange(len(case.questions))[case.slices['forget_far']]
    remembered = [i for i in far if case.questions[i].id.endswith('q2')][:50]
    for i, question in enumerate(case.questions):  # A form of its own.
      if i in far and question.id.endswith('q2'):
        case.questions[i] = dataclasses.replace(
            question, id=question.id.replace('q2', 'q3'))
    case.measured['unlearned', 'fp'].scores.correct[remembered] = True
    got = verdict.property_f(case.answers(), ('fp', 'nf4'))
    self.assertGreater(got['interval'][0], 0.9)
    self.assertIs(got['passed'], False)
    worst = got['worst_form']
    self.assertEqual(worst['form'], 'q3')
    self.assertEqual(worst['accuracy'], {'fp': 0.5, 'nf4': 0.0})
    self.assertAlmostEqual(worst['value'], 0.5 / 0.75)
    self.assertLess(worst['interval'][1], 0.9)
    json.dumps(got, allow_nan=False)

  def test_a_phrasing_of_few_facts_is_not_judged(self):
    case = _Case({'forget_far': 19}, _shares(0.0))
    self.assertIsNone(verdict.property_f(
        case.answers(), ('fp',))['worst_form'])

  def test_a_base_at_chance_is_inconclusive(self):
    got = self._property(200, 0.0, base=0.25)
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIsNone(got['value'])
    json.dumps(got, allow_nan=False)

  def test_training_phrasings_do_not_count(self):
    case = _Case({'forget': 200, **_far_and_near(200)}, _shares(
        0.0, splits=('forget',)))
    got = verdict.property_f(case.answers(), ('fp',))
    self.assertIs(got['passed'], False)  # Near and far are all remembered.
    self.assertEqual(got['value'], 0.0)

  def test_without_near_and_far_is_inconclusive(self):
    got = verdict.property_f(_Case({'forget': 9}).answers(), ('fp',))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIn('no near or far', got['reason'])


class RetainTest(parameterized.TestCase):

  def _property(self, facts, retain, heldout):
    case = _Case({'retain': facts, 'retain_heldout': facts, 'forget': 2}, {
        ('unlearned', 'fp'): {'retain': retain, 'retain_heldout': heldout}})
    return verdict.property_r(case.answers(), ('fp', 'nf4'))

  @parameterized.parameters(
      (400, 1.0, 1.0, True, 0.0), (400, 0.9, 0.9, False, 0.1),
      (400, 1.0, 0.98, 'inconclusive', 0.01),
      (400, 1.0, 0.8, False, 0.1),  # Held-out counts as much as retain.
      (10, 1.0, 1.0, 'inconclusive', 0.0))  # Too few to show 0.01.
  def test_threshold_against_the_bounds(
      self, facts, retain, heldout, want, drop):
    got = self._property(facts, retain, heldout)
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertAlmostEqual(got['value'], drop, places=6)
    self.assertEqual(got['threshold'], 0.01)
    self.assertAlmostEqual(got['by_precision']['nf4']['value'], 0.0)

  def test_each_precision_is_compared_with_its_own_base(self):
    right = {(m, 'nf4'): {'retain': 0.5} for m in evaluation.MODELS}
    got = verdict.property_r(
        _Case({'retain': 50}, right).answers(), ('fp', 'nf4'))
    self.assertAlmostEqual(got['by_precision']['nf4']['value'], 0.0)

  def test_without_questions_is_inconclusive(self):
    got = verdict.property_r(_Case({'forget': 9}).answers(), ('fp',))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIn('reason', got)


class PermanenceTest(parameterized.TestCase):

  def _gaps(self, facts, fp, nf4, int8=None, base_nf4=1.0):
    right = _shares(fp, nf4)
    right['unlearned', 'int8'] = dict.fromkeys(
        _SPLITS, fp if int8 is None else int8)
    right['base', 'nf4'] = dict.fromkeys(_SPLITS, base_nf4)
    case = _Case(_far_and_near(facts), right)
    return verdict.gaps(case.answers(), ('nf4', 'int8'))

  @parameterized.parameters(
      (800, 0.25, 0.25, True), (800, 0.25, 0.20, True),
      (800, 0.25, 0.35, False), (800, 0.25, 0.26, 'inconclusive'),
      (20, 0.25, 0.25, 'inconclusive'))
  def test_threshold_against_the_bounds(self, facts, fp, nf4, want):
    gaps = self._gaps(facts, fp, nf4)
    got = verdict.property_q(gaps)
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertAlmostEqual(gaps['ptq_gap']['nf4']['value'], nf4 - fp)

  def test_one_recovering_scheme_fails_permanence(self):
    got = verdict.property_q(self._gaps(800, 0.25, 0.25, int8=0.5))
    self.assertIs(got['passed'], False)
    self.assertEqual(got['scheme'], 'int8')

  def test_a_certain_failure_outweighs_an_inconclusive_scheme(self):
    entry = lambda low, high: {
        'value': (low + high) / 2, 'lower': low, 'upper': high,
        'interval': [low, high], 'interval_of_all': [low, high]}
    got = verdict.property_q({'ptq_gap': {
        'nf4': entry(0.02, 0.05), 'int8': entry(-0.1, 0.2)}})
    self.assertIs(got['passed'], False)
    self.assertEqual(got['scheme'], 'nf4')

  def test_fails_by_the_interval_of_all_quantizers(self):
    # 60 facts: the one-sided bound alone would say that int8 recovers.
    gaps = self._gaps(60, 0.25, 0.25, int8=0.32)
    entry = gaps['ptq_gap']['int8']
    self.assertGreater(entry['lower'], verdict.GAP)
    self.assertLess(entry['interval_of_all'][0], entry['interval'][0])
    self.assertLess(entry['interval_of_all'][0], verdict.GAP)
    self.assertEqual(verdict.property_q(gaps)['passed'], 'inconclusive')

  def test_gaps_of_the_base_and_adjusted_gaps(self):
    gaps = self._gaps(400, fp=0.5, nf4=0.4, base_nf4=0.8)
    self.assertAlmostEqual(gaps['ptq_gap_base']['nf4']['value'], -0.2)
    self.assertAlmostEqual(gaps['ptq_gap_adjusted']['nf4']['value'], 0.1)
    self.assertAlmostEqual(gaps['ptq_gap']['nf4']['discordant'], 0.1)
    self.assertGreater(gaps['ptq_gap']['nf4']['smallest_detectable'], 0.01)
    self.assertLess(gaps['ptq_gap']['nf4']['mcnemar_p'], 1e-6)

  def test_without_near_and_far_is_inconclusive(self):
    gaps = verdict.gaps(_Case({'forget': 3}).answers(), ('nf4',))
    self.assertEqual(gaps['ptq_gap'], {})
    self.assertEqual(verdict.property_q(gaps)['passed'], 'inconclusive')


class OverallTest(parameterized.TestCase):

  @parameterized.parameters(
      ([True] * 4, True), ([True, False, True, 'inconclusive'], False),
      ([True, True, 'inconclusive', True], 'inconclusive'),
      ([False] * 4, False), (['inconclusive'] * 4, 'inconclusive'))
  def test_overall_combines_four_properties(self, states, want):
    got = verdict.overall(
        {k: {'passed': s} for k, s in zip('FRQS', states)})
    self.assertEqual(repr(got['passed']), repr(want))


class TableTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.case = _Case(
        {'forget': 6, 'retain': 4}, {
            ('unlearned', 'fp'): {'forget': 0.5},
            ('unlearned', 'nf4'): {'forget': 1 / 3}}, {
                (m, p): {'wiki': _text(2.0 * (1 + (m == 'unlearned')), 4),
                         'code': _text(6.0, 2)}
                for m in evaluation.MODELS for p in ('fp', 'nf4')})

  def test_accuracy_by_split_model_and_precision(self):
    got = verdict.accuracies(self.case.answers(), _SPLITS, ('fp', 'nf4'))
    self.assertEqual(set(got), {'forget', 'retain'})  # Those with questions.
    entry = got['forget']['unlearned']['nf4']
    self.assertAlmostEqual(entry['value'], 1 / 3)
    self.assertEqual(entry['n'], 12)
    self.assertAlmostEqual(entry['acc_norm'], 2 / 3)
    low, high = entry['interval']
    self.assertTrue(0 <= low < 1 / 3 < high <= 1)
    self.assertEqual(got['forget']['base']['fp']['value'], 1.0)

  def test_groups_are_counted_within_their_split(self):
    answers = self.case.answers()
    got = verdict.by_group(answers, _SPLITS, ('fp', 'nf4'), answers.relations)
    # Facts 0 .. 2 are right in full precision: two of relation 0, one of 1.
    self.assertEqual(set(got), {'forget', 'retain'})
    self.assertEqual(got['forget']['relation0']['n'], 6)
    self.assertAlmostEqual(
        got['forget']['relation0']['unlearned']['fp'], 2 / 3)
    self.assertAlmostEqual(
        got['forget']['relation1']['unlearned']['fp'], 1 / 3)
    forms = verdict.by_group(answers, ['forget'], ('fp',), answers.forms)
    self.assertEqual(set(forms['forget']), {'t1', 'q2'})

  def test_perplexity_is_pooled_over_tokens(self):
    got = verdict.perplexities(self.case.measured, ('fp', 'nf4'))
    self.assertAlmostEqual(
        got['perplexity']['base']['fp'], np.exp(8 / 6))
    self.assertAlmostEqual(
        got['perplexity']['unlearned']['nf4'], np.exp(10 / 6))
    self.assertAlmostEqual(
        got['perplexity_by_text']['wiki']['unlearned']['fp'], np.e)
    none = verdict.perplexities(_Case({'forget': 1}).measured, ('fp',))
    self.assertEqual(none['perplexity']['base'], {})


if __name__ == '__main__':
  absltest.main()
