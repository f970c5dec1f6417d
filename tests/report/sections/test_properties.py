"""The cards of the four properties show the record's figures."""

from absl.testing import absltest

from mansu_jax.report.sections import properties
from tests.report import cases
from tests.report import judged
from tests.report import records


def _figures(entry, sign=False):
  form = '+.3f' if sign else '.3f'
  low, high = entry['interval']
  return f'{entry["value"]:{form}} [{low:{form}}, {high:{form}}]'


class PropertiesTest(cases.ReportTest):

  def _cards(self, record):
    cards, = properties.section(record).blocks
    return {card.letter: card for card in cards.items}

  def test_page_shows_verdict_and_headlines(self):
    text = self.page(records.make()).text
    self.assertIn('Unlearning failed', text)
    self.assertIn(
        'Forgetting, retain preservation and structural erasure failed;'
        ' quantization permanence is inconclusive.', text)
    for shown in (
        'phi 0.797 [0.750, 0.844], reverse question (nf4)',
        'at or above 0.89', 'accuracy drop +0.052 [+0.040, +0.064] (fp)',
        'knowledge brought back +0.009 [-0.023, +0.040] (int4_g128)',
        'hidden share 0.377 [0.286, 0.474] (fp)',
        'or if the whole interval lies above 0.2',
        'smallest detectable effect: 0.026 (300 questions on 50 facts)'):
      self.assertIn(shown, text)

  def test_forgetting_lists_every_reading_and_precision(self):
    record = records.make()
    notes = self._cards(record)['F'].notes
    for name, found in record['properties']['F']['by_reading'].items():
      note = next(n for n in notes if n.startswith(properties.READINGS[name]))
      for precision, entry in found.items():
        self.assertIn(f'{precision} {_figures(entry)}'
                      if entry['value'] is not None else
                      f'{precision} not measured', note)
    self.assertNotIn('same subject', ' '.join(notes))

  def test_retain_lists_both_kinds_of_facts(self):
    record = records.make()
    entry = record['properties']['R']
    notes = self._cards(record)['R'].notes
    for label, key in (('held-out facts', 'by_precision'),
                       ('retained facts', 'trained')):
      for precision, found in entry[key].items():
        self.assertIn(f'{label}, {precision}: {_figures(found, True)}', notes)

  def test_retained_facts_that_stand_in_are_listed_once(self):
    record = records.make()
    entry = record['properties']['R']
    entry |= {'split': 'retain', 'by_precision': entry['trained'],
              'passed': 'inconclusive', 'reason': 'only retained questions'}
    notes = self._cards(record)['R'].notes
    self.assertEqual(sum('facts, fp' in note for note in notes), 1)
    self.assertIn('inconclusive: only retained questions', notes)
    self.assertNotIn('held-out facts', ' '.join(notes))

  def test_quantizers_list_their_readings(self):
    record = records.make()
    notes = self._cards(record)['Q'].notes
    for scheme, found in record['properties']['Q']['by_scheme'].items():
      self.assertIn(f'{scheme}: {_figures(found, True)}', notes)
      note = next(n for n in notes if n.startswith(f'{scheme} by reading'))
      for name, one in found['by_reading'].items():
        self.assertIn(f'{properties.READINGS[name]} {_figures(one, True)}',
                      note)

  def test_structure_lists_precisions_and_all_reasons(self):
    record = records.make()
    entry = record['properties']['S']
    notes = self._cards(record)['S'].notes
    self.assertEqual(notes[0], f'failed: {"; ".join(entry["reasons"])}')
    self.assertLen(entry['reasons'], 2)
    for precision, found in entry['by_precision'].items():
      self.assertIn(f'{precision}: {_figures(found)}', notes)

  def test_verdicts_say_which_bound_decided(self):
    record = records.make()
    for passed, rules in (
        (True, ('every lower bound is at or above 0.89',
                'every upper bound is at or below 0.01')),
        (False, ('a whole interval is below 0.89, corrected',
                 'a whole interval is above 0.01, corrected')),
        ('inconclusive', ('an interval includes 0.89; more questions',
                          'an interval includes 0.01; more questions'))):
      for letter, rule in zip('FR', rules):
        record['properties'][letter]['passed'] = passed
        self.assertIn(rule, self._cards(record)[letter].notes[0])

  def test_a_measure_that_is_not_defined_says_so(self):
    record = records.make()
    record['properties']['F'] |= judged.UNDEFINED | {'passed': 'inconclusive'}
    card = self._cards(record)['F']
    self.assertEqual(card.headline, 'not judged')
    self.assertIn('the measure is not defined on these data', card.notes[0])

  def test_nothing_to_judge_gives_the_reasons(self):
    cards = self._cards(records.bare())
    self.assertEqual({card.headline for card in cards.values()},
                     {'not judged'})
    self.assertEqual(
        cards['F'].notes,
        ('inconclusive: the forget set has no near or far questions',))
    self.assertEqual(
        cards['S'].notes,
        ('inconclusive: the hidden share is not measured: there are too few'
         ' forget questions; the forget facts do not suffice',))

  def test_the_sentence_says_that_all_passed(self):
    record = records.make()
    for entry in record['properties'].values():
      entry['passed'] = True
    self.assertEqual(
        properties.sentence(record),
        'All four properties passed: forgetting, retain preservation,'
        ' quantization permanence and structural erasure.')


if __name__ == '__main__':
  absltest.main()
