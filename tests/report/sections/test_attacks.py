"""The attack section shows the record's figures."""

import types

from absl.testing import absltest

from mansu_jax.report import document
from mansu_jax.report.sections import attacks
from tests.report import records


def _estimate(value):
  return records.estimate(value, 0.1, 120)


def _record(passed=False, unknown=True):
  steps = lambda *values: [
      {'step': step, 'guessed': value / 2} | _estimate(value)
      for step, value in zip((0, 10), values)]
  side = {'taught_facts': 29, 'asked_facts': 30, 'questions': 120,
          'narrowed': 3, 'dropped': 1, 'reading': 'choice', 'chance': 0.25,
          'base': 0.95, 'base_guessed': 0.26, 'unprobed': 2}
  verdict = {
      'attack': 'lora_3e-4', 'precision': 'nf4', 'step': 10, 'comparisons': 2,
      'gain': _estimate(0.5), 'gain_unknown': _estimate(0.02),
      'difference': _estimate(0.48) | {'lower_of_all': 0.301},
      'passed': passed, 'reason': 'r'}
  if not unknown:
    verdict |= {'gain_unknown': None, 'difference': None}
  return {
      'attacks': {'lora_3e-4': {'fp': steps(0.31, 0.55),
                                'nf4': steps(0.3, 0.8)}},
      'attacks_unknown': unknown and {'lora_3e-4': {
          'fp': steps(0.26, 0.27), 'nf4': steps(0.25, 0.29)}} or {},
      'attack_setup': {'benign_on': 'text', 'forget': side} | (
          {'unknown': side | {'base': 0.26, 'base_guessed': 0.27}}
          if unknown else {}),
      'attack_verdict': verdict}


def _texts(record):
  section = attacks.section(record)
  kinds = types.SimpleNamespace(text=document.Text, table=document.Table)
  of = lambda kind: [b for b in section.blocks if isinstance(b, kind)]
  return [b.text for b in of(kinds.text)], of(kinds.table)


class AttacksTest(absltest.TestCase):

  def test_rows_are_the_records(self):
    texts, (table,) = _texts(_record())
    self.assertEqual([row[:3] for row in table.rows], [
        ('lora_3e-4', 'full precision', '0'),
        ('lora_3e-4', 'full precision', '10'), ('lora_3e-4', 'nf4', '0'),
        ('lora_3e-4', 'nf4', '10')])
    self.assertStartsWith(table.rows[3][3], '0.800 [0.700')
    self.assertEndsWith(table.rows[3][3], '], guessing 0.400')
    self.assertStartsWith(table.rows[3][4], '0.290 [')
    self.assertIn('29 facts taught, 30 asked in 120 questions', table.caption)
    self.assertIn('Facts never known:', table.caption)
    self.assertIn('without another fact to guess by: 2;', table.caption)
    self.assertIn('the base 0.260 and by guessing 0.270;', table.caption)
    self.assertIn('+0.301 over all 2 comparisons', texts[2])

  def test_what_each_attack_does(self):
    record = _record()
    found = record['attacks']['lora_3e-4']
    text, *_ = _texts(record)[0][1:]
    self.assertEqual(text, (
        'Attack lora fine-tunes low-rank adapters on half of the forget facts.'
        ' The name has the learning rate of Adam; a step has 16 sequences. The'
        ' other half of the facts is asked.'))
    record['attacks'] |= {'lora_3e-4_share_0.05': found, 'few_shot': found}
    record['attack_verdict'] |= {'attack': 'few_shot', 'step': 5}
    text, *_ = _texts(record)[0][1:]
    self.assertIn('; few_shot puts solved questions about half of the', text)
    self.assertIn('and the share of the facts that is taught if it', text)
    self.assertIn('after 5 examples of few_shot (nf4)',
                  attacks.sentence(record))
    self.assertIn('(few_shot, nf4, 5 examples)', attacks.brief(record))

  def test_sentences(self):
    self.assertEqual(
        attacks.sentence(_record()),
        'The known share of facts that were not taught changed by +0.500 after'
        ' 10 steps of lora_3e-4 (nf4), and on facts that the base never knew by'
        ' +0.020:'
        ' retraining brings the forgotten facts back.')
    self.assertIn(
        'no more than guessing explains (', attacks.sentence(
            _record('inconclusive')))
    known = _record('inconclusive')
    known['attack_verdict'] |= {
        'control': {'valid': False}, 'reason': 'the base knows facts'}
    self.assertEndsWith(
        attacks.sentence(known), 'by +0.020; whether guessing explains this is'
        ' open: the base knows facts.')
    self.assertIn('--data_unknown', attacks.sentence(_record(
        'inconclusive', unknown=False)))

  def test_without_facts_never_known_their_column_is_empty(self):
    texts, (table,) = _texts(_record('inconclusive', unknown=False))
    self.assertLen(texts, 2)
    self.assertEqual({row[4] for row in table.rows}, {'not measured'})

  def test_nothing_measured(self):
    reason = {'attacks': {}, 'attack_verdict': {
        'value': None, 'reason': 'the forget set has one fact'}}
    texts, tables = _texts(reason)
    self.assertEqual(texts, [
        'Attacks were not measured: the forget set has one fact.'])
    self.assertEmpty(tables)
    self.assertEqual(_texts({})[0], [
        'Attacks were not measured: the run has no attacks.'])
    record = _record() | {'attack_verdict': {
        'passed': 'inconclusive', 'reason': 'the model guesses all'}}
    self.assertEqual(
        attacks.brief(record), 'retraining: open: the model guesses all')
    texts, (table,) = _texts(record)
    self.assertEqual(texts[0], 'Attacks decide nothing: the model guesses all.')
    self.assertLen(texts, 2)
    self.assertLen(table.rows, 4)


if __name__ == '__main__':
  absltest.main()
