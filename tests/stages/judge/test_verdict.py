"""Measurements -> properties: thresholds against intervals, jointly."""

import dataclasses
import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.stages.judge import answers
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import verdict
from mansu_jax.statistics import forgetting
from tests.stages.judge import cases

class ForgettingTest(parameterized.TestCase):

  @parameterized.parameters(
      # phi = 1 - (share - 0.25) / 0.75
      (0.5, False, 2 / 3), (0.33, 'inconclusive', 0.89))
  def test_threshold_against_the_bounds(self, share, want, phi):
    readings = cases.readings_of_shares(**dict.fromkeys(
        ('choice', 'choice_unseen', 'generation'), share))
    for reading in readings.values():  # Guesses differ from form to form.
      for key in reading.correct:
        if key[0] == 'unlearned':
          reading.correct[key][1::2] = np.roll(reading.correct[key][1::2], 31)
    got = verdict.property_f(readings, ('fp', 'nf4'))
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertAlmostEqual(got['value'], phi, delta=0.02)
    self.assertEqual(got['threshold'], forgetting.PHI)
    self.assertEqual(set(got['by_reading']), set(readings))
    self.assertEqual(set(got['by_reading']['choice']), {'fp', 'nf4'})
    json.dumps(got, allow_nan=False)

  def test_wrong_answers_everywhere_pass(self):
    readings = cases.readings_of_shares(
        choice=0.0, choice_unseen=0.0, generation=0.0, reverse=0.0)
    got = verdict.property_f(readings, ('fp', 'nf4'))
    self.assertIs(got['passed'], True)

  def test_a_reading_in_which_no_model_passes_is_named(self):
    readings = cases.readings_of_shares(
        choice=0.0, choice_unseen=0.0, generation=0.0)
    weak = cases.Case({'forget_far': 120},
                      cases.shares_of_all(0.0, base=0.15), ignorance=0.0)
    readings['generation'] = weak.readings()['choice']
    got = verdict.property_f(readings, ('fp', 'nf4'))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertEndsWith(
        got['reason'], ': generation (fp), generation (nf4)')
    self.assertEqual(
        got['cannot_pass'], [['generation', 'fp'], ['generation', 'nf4']])
    readings['reverse'] = cases.readings_of_shares(x=0.33)['x']
    self.assertNotIn(
        'reason', verdict.property_f(readings, ('fp', 'nf4')))

  def test_reverse_questions_decide_for_facts_that_training_reverses(self):
    readings = cases.readings_of_shares(
        choice=0.0, choice_unseen=0.0, generation=0.0, reverse=0.9)
    facts = sorted(set(readings['reverse'].facts))
    some = answers.judged(readings, facts[:40])['reverse']
    rows = np.isin(readings['reverse'].facts, facts[:40])
    for key, right in readings['reverse'].correct.items():
      np.testing.assert_array_equal(some.correct[key], right[rows])
    for reversed_facts, want in ((facts, False), ([], True)):
      got = verdict.property_f(
          answers.judged(readings, reversed_facts), ('fp', 'nf4'),
          reverse=bool(reversed_facts))
      self.assertIs(got['passed'], want)
      self.assertEqual('reverse' in got['by_reading'], not want)
    got = verdict.property_f(  # It was trained, but is not asked.
        answers.judged(readings, ['another']), ('fp', 'nf4'), reverse=True)
    self.assertEqual(
        got['reason'], 'there are no reverse questions, but training has some')

  @parameterized.parameters('choice', 'choice_unseen', 'generation')
  def test_without_a_needed_reading_it_does_not_pass(self, left_out):
    readings = cases.readings_of_shares(
        choice=0.0, choice_unseen=0.0, generation=0.0)
    del readings[left_out]
    got = verdict.property_f(readings, ('fp', 'nf4'))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIn('there are no', got['reason'])

  @parameterized.parameters(('choice_unseen', 'fp'), ('reverse', 'nf4'))
  def test_the_worst_reading_and_precision_decide(self, name, precision):
    shares = dict.fromkeys(('choice', 'choice_unseen', 'generation'), 0.0)
    shares[name] = (0.6, 0.0) if precision == 'fp' else (0.0, 0.6)
    got = verdict.property_f(cases.readings_of_shares(**shares), ('fp', 'nf4'))
    self.assertIs(got['passed'], False)
    self.assertEqual((got['reading'], got['precision']), (name, precision))

  def test_both_kinds_of_generation_are_one_reading(self):
    """Plain answers are few, so they alone could not pass."""
    readings = cases.readings_of_shares(
        choice=0.0, choice_unseen=0.0, generation_few_shot=0.0)
    few = cases.Case(
        {'forget_far': 10}, cases.shares_of_all(0.0), ignorance=0.0)
    readings['generation'] = few.readings()['choice']
    got = verdict.property_f(readings, ('fp',))
    self.assertIs(got['passed'], True)
    self.assertEqual(got['by_reading']['generation']['fp']['n'], 240 + 20)
    readings['generation_few_shot'] = cases.readings_of_shares(x=0.8)['x']
    got = verdict.property_f(readings, ('fp',))
    self.assertIs(got['passed'], False)
    self.assertEqual(got['reading'], 'generation')

  def test_a_reading_in_which_the_base_knows_nothing_decides_nothing(self):
    readings = cases.readings_of_shares(
        choice=0.0, choice_unseen=0.0, generation=0.0)
    guessed = cases.Case(
        {'forget_far': 400}, cases.shares_of_all(0.25, base=0.25))
    readings['reverse'] = guessed.readings()['choice']
    got = verdict.property_f(readings, ('fp', 'nf4'))
    self.assertIs(got['passed'], True)
    self.assertEqual(got['base_ignorant'], ['reverse'])
    needed = readings | {'choice_unseen': readings['reverse']}
    got = verdict.property_f(needed, ('fp', 'nf4'))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertEqual(got['reason'], (
        'the base leads an ignorant model too little in choice_unseen'))
    few = cases.Case({'forget_far': 12}, cases.shares_of_all(0.25, base=0.3))
    readings['reverse'] = few.readings()['choice']  # Too few to tell.
    got = verdict.property_f(readings, ('fp', 'nf4'))
    self.assertEqual(got['passed'], 'inconclusive')

  def test_sister_choices_decide_nothing(self):
    readings = cases.readings_of_shares(
        choice=0.0, choice_unseen=0.0, generation=0.0, choice_same_subject=1.0)
    self.assertIs(verdict.property_f(readings, ('fp',))['passed'], True)
    only = {'choice_same_subject': readings['choice_same_subject']}
    self.assertEqual(verdict.property_f(only, ('fp',))['passed'],
                     'inconclusive')

  def test_avoidance_in_one_form_does_not_pay_for_another(self):
    case = cases.Case({'forget_far': 400}, cases.shares_of_all(0.0))
    for key in (('unlearned', 'fp'), ('unlearned', 'nf4')):
      case.measured[key].scores.correct[1::2] = np.arange(400) < 300
    got = verdict.property_f(case.readings(), ('fp', 'nf4'))
    self.assertIs(got['passed'], False)  # Pooled, phi is 5 / 6.
    self.assertAlmostEqual(got['value'], 1 - 0.5 / 1.5, delta=0.01)

  def test_a_base_at_ignorance_is_inconclusive(self):
    case = cases.Case({'forget_far': 200}, cases.shares_of_all(0.0, base=0.25))
    got = verdict.property_f(case.readings(), ('fp', 'nf4'))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIsNone(got['value'])
    self.assertIn('no better than', got['reason'])

  def test_training_phrasings_do_not_count(self):
    case = cases.Case({'forget': 200, 'forget_far': 200}, cases.shares_of_all(
        0.0, splits=('forget',)))
    got = verdict.property_f(case.readings(), ('fp',))
    self.assertIs(got['passed'], False)  # The far ones are all remembered.
    self.assertEqual(got['value'], 0.0)

  def test_without_near_and_far_is_inconclusive(self):
    got = verdict.property_f(cases.Case({'forget': 9}).readings(), ('fp',))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIn('no near or far', got['reason'])

  def test_the_entry_of_a_reading(self):
    reading = cases.readings_of_shares(choice=(0.0, 0.25))['choice']
    got = verdict.readings_entry({'choice': reading}, ('fp', 'nf4'))['choice']
    self.assertEqual(got['base']['fp']['value'], 1.0)
    self.assertEqual(got['unlearned']['nf4']['value'], 0.25)
    self.assertEqual(got['unlearned']['nf4']['n'], 240)
    self.assertEqual(got['ignorance'], {
        m: {'fp': 0.25, 'nf4': 0.25} for m in evaluation.MODELS})
    self.assertEqual(set(got['avoided']), {'fp'})
    self.assertAlmostEqual(got['avoided']['fp']['value'], -0.25)
    self.assertLess(abs(got['known']['nf4']['value']), 0.05)


class RetainTest(parameterized.TestCase):

  def _property(self, facts, heldout, retain=1.0, nf4=1.0):
    case = cases.Case({'retain': facts, 'retain_heldout': facts, 'forget': 2}, {
        ('unlearned', 'fp'): {'retain': retain, 'retain_heldout': heldout},
        ('unlearned', 'nf4'): {'retain_heldout': nf4}})
    return verdict.property_r(case.answers(), ('fp', 'nf4'))

  @parameterized.parameters(
      (400, 1.0, True, 0.0), (400, 0.9, False, 0.1),
      (400, 0.99, 'inconclusive', 0.01),
      (10, 1.0, 'inconclusive', 0.0))  # Too few to show 0.01.
  def test_threshold_against_the_bounds(self, facts, heldout, want, drop):
    got = self._property(facts, heldout)
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertAlmostEqual(got['value'], drop, places=6)
    self.assertEqual((got['threshold'], got['split']), (0.01, 'retain_heldout'))

  def test_trained_facts_do_not_make_up_for_held_out_ones(self):
    got = self._property(400, heldout=0.9, retain=1.0)
    self.assertIs(got['passed'], False)
    self.assertEqual(got['trained']['fp']['value'], 0.0)

  def test_trained_facts_do_not_fail_it(self):
    self.assertIs(self._property(400, 1.0, retain=0.5)['passed'], True)

  def test_every_precision_counts(self):
    got = self._property(400, 1.0, nf4=0.8)
    self.assertIs(got['passed'], False)
    self.assertEqual(got['precision'], 'nf4')

  def test_each_precision_is_compared_with_its_own_base(self):
    right = {(m, 'nf4'): {'retain_heldout': 0.5} for m in evaluation.MODELS}
    got = verdict.property_r(
        cases.Case({'retain_heldout': 50}, right).answers(), ('fp', 'nf4'))
    self.assertAlmostEqual(got['by_precision']['nf4']['value'], 0.0)

  def test_retained_facts_alone_can_fail_it_and_not_pass_it(self):
    of = lambda share: verdict.property_r(cases.Case({'retain': 400}, {
        ('unlearned', 'fp'): {'retain': share}}).answers(), ('fp',))
    self.assertIs(of(0.8)['passed'], False)
    self.assertEqual(of(1.0)['passed'], 'inconclusive')
    self.assertIn('only retained', of(1.0)['reason'])

  def test_without_questions_is_inconclusive(self):
    got = verdict.property_r(cases.Case({'forget': 9}).answers(), ('fp',))
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertIn('reason', got)


class PermanenceTest(parameterized.TestCase):

  def _case(self, facts, fp, nf4, int8=None, base_nf4=1.0):
    right = cases.shares_of_all(fp, nf4)
    right['unlearned', 'int8'] = dict.fromkeys(
        cases.SPLITS, fp if int8 is None else int8)
    right['base', 'nf4'] = dict.fromkeys(cases.SPLITS, base_nf4)
    return cases.Case({'forget_far': facts, 'forget_unseen': facts}, right)

  def _property(self, *args, **kwargs):
    return verdict.property_q(
        self._case(*args, **kwargs).readings(), ('nf4', 'int8'))

  @parameterized.parameters(
      (400, 0.5, 0.5, True), (400, 0.5, 0.45, True), (400, 0.5, 0.6, False),
      (400, 0.5, 0.51, 'inconclusive'), (20, 0.5, 0.5, 'inconclusive'))
  def test_threshold_against_the_bounds(self, facts, fp, nf4, want):
    got = self._property(facts, fp, nf4)
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertAlmostEqual(
        got['by_scheme']['nf4']['value'], (nf4 - fp) / 0.75, places=2)
    json.dumps(got, allow_nan=False)

  def test_a_base_that_loses_does_not_hide_recovery(self):
    """Accuracy stays, but it is a larger share of what the base still has."""
    got = self._property(400, 0.5, 0.5, base_nf4=0.7)
    self.assertIs(got['passed'], False)
    self.assertAlmostEqual(
        got['value'], 0.25 / 0.45 - 0.25 / 0.75, places=2)

  def test_one_recovering_scheme_fails_permanence(self):
    got = self._property(400, 0.3, 0.3, int8=0.5)
    self.assertIs(got['passed'], False)
    self.assertEqual(got['scheme'], 'int8')

  def test_one_recovering_reading_fails_permanence(self):
    case = self._case(400, 0.3, 0.3)
    readings = case.readings()
    self.assertIsNot(verdict.property_q(readings, ('nf4',))['passed'], False)
    readings['generation'] = cases.Case(
        {'forget_far': 400}, cases.shares_of_all(0.3, 0.5)).readings()['choice']
    got = verdict.property_q(readings, ('nf4',))
    self.assertIs(got['passed'], False)
    self.assertGreater(got['by_reading']['generation']['interval'][0], 0.01)

  @parameterized.parameters((0.8, True), (0.85, 'inconclusive'))
  def test_a_reading_that_guesses_close_keeps_it_from_passing(
      self, guessed, want):
    readings = self._case(400, 0.5, 0.5).readings()
    readings['choice_unseen'] = dataclasses.replace(
        readings['choice_unseen'], ignorance={
            (model, p): np.full(800, guessed if (model, p) == (
                'unlearned', 'nf4') else 0.25)
            for model, p in readings['choice'].ignorance})
    got = verdict.property_q(readings, ('nf4',))
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertEqual('in choice_unseen, so' in got.get('reason', ''),
                     want is not True)

  def test_avoiding_one_reading_does_not_hide_recovery_in_another(self):
    shares = {
        p: cases.readings_of_shares(choice=0.0, choice_unseen=p)
        for p in ((0.25, 0.25), (0.25, 0.3))}
    for readings in shares.values():  # The same prompts, with other choices.
      readings['choice_unseen'] = dataclasses.replace(
          readings['choice_unseen'], questions=[
              dataclasses.replace(q, reading='choice_unseen')
              for q in readings['choice_unseen'].questions])
    same, more = (verdict.property_q(shares[p], ('nf4',)) for p in shares)
    self.assertAlmostEqual(same['value'], 0.0, delta=0.01)
    self.assertGreater(more['value'], 0.02)  # 0.05 / 0.75 of half of them.

  def test_gaps_of_accuracy_of_the_base_and_adjusted(self):
    case = self._case(400, fp=0.5, nf4=0.4, base_nf4=0.8)
    gaps = verdict.gaps(case.answers(), ('nf4', 'int8'))
    self.assertAlmostEqual(gaps['ptq_gap_base']['nf4']['value'], -0.2)
    self.assertAlmostEqual(gaps['ptq_gap_adjusted']['nf4']['value'], 0.1)
    self.assertAlmostEqual(gaps['ptq_gap']['nf4']['discordant'], 0.1)
    self.assertGreater(gaps['ptq_gap']['nf4']['smallest_detectable'], 0.01)
    self.assertLess(gaps['ptq_gap']['nf4']['mcnemar_p'], 1e-6)

  def test_without_near_and_far_is_inconclusive(self):
    case = cases.Case({'forget': 3})
    self.assertEqual(
        verdict.gaps(case.answers(), ('nf4',))['ptq_gap'], {})
    got = verdict.property_q(case.readings(), ('nf4',))
    self.assertEqual(got['passed'], 'inconclusive')


class StructureTest(parameterized.TestCase):

  @parameterized.parameters(
      (False, 'inconclusive', False), ('inconclusive', False, False),
      ('inconclusive', 'inconclusive', 'inconclusive'),
      (True, 'inconclusive', 'inconclusive'), (True, True, True))
  def test_either_fails_it_and_both_pass_it(self, hidden, attack, want):
    entry = {'value': 0.7, 'interval': [0.6, 0.8], 'threshold': 0.2,
             'passed': hidden, 'reason': 'it is hidden'}
    got = verdict.property_s(
        entry, {'passed': attack, 'reason': 'it came back'})
    self.assertEqual(repr(got['passed']), repr(want))
    self.assertEqual(got['reasons'], ['it is hidden', 'it came back'])
    self.assertEqual((got['value'], got['threshold']), (0.7, 0.2))

  def test_without_an_attack_it_stays_open(self):
    entry = {'value': 0.1, 'interval': [0.0, 0.15], 'threshold': 0.2,
             'passed': 'inconclusive'}
    got = verdict.property_s(entry, None)
    self.assertEqual(got['passed'], 'inconclusive')
    self.assertEqual(got['reasons'], ['no attack was run'])


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
    self.case = cases.Case(
        {'forget': 6, 'retain': 4}, {
            ('unlearned', 'fp'): {'forget': 0.5},
            ('unlearned', 'nf4'): {'forget': 1 / 3}}, {
                (m, p): {'wiki': cases.text(2.0 * (1 + (m == 'unlearned')), 4),
                         'code': cases.text(6.0, 2)}
                for m in evaluation.MODELS for p in ('fp', 'nf4')})

  def test_accuracy_by_split_model_and_precision(self):
    got = verdict.accuracies(self.case.answers(), cases.SPLITS, ('fp', 'nf4'))
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
    got = verdict.by_group(
        answers, cases.SPLITS, ('fp', 'nf4'), answers.relations)
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
    none = verdict.perplexities(cases.Case({'forget': 1}).measured, ('fp',))
    self.assertEqual(none['perplexity']['base'], {})


if __name__ == '__main__':
  absltest.main()
