"""Asked questions of `build_facts`: readings, files and invalid tables."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import build_facts

_FACTS = {'all': {'france': 'Paris', 'italy': 'Rome', 'spain': 'Madrid',
                  'norway': 'Oslo', 'swaziland': 'Mbabane',
                  'eswatini': 'Mbabane'}}
_UNSEEN = ['Kyiv', 'Minsk', 'Tunis', 'Lyon', 'Bari', 'Turin', 'Graz']
_ASKED = {
    'questions': {'visa': 'For {subject} you fly to'},
    'reverse': {'home': '{answer} is the capital of'}, 'reverse_sets': 1,
    'unseen': _UNSEEN,
    'unseen_sets': 2,
    'same_subject': {'france': ['Lyon', 'Nice', 'Lille', 'Brest']},
}


class AskedTest(parameterized.TestCase):

  def _build(self, asked, **changes):
    relation = {
        'relation': 'capital', 'train': ['capital of {subject}:'],
        'near': ['{subject} has'], 'facts': _FACTS,
        'files': {'capitals': ['all']}, 'asked': asked, **changes}
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'capital.json').write_text(json.dumps(relation))
    (folder / 'forms.json').write_text('{"question": "{question}"}')
    return {name: [json.loads(line) for line in text.splitlines()]
            for name, text in build_facts.build(folder).items()}

  def _of(self, rows, fact):
    return {row['id'].removeprefix(f'capital/{fact}/'): row for row in rows
            if row['fact'] == f'capital/{fact}'}

  def test_asked_questions_replace_the_shared_forms(self):
    rows = self._of(self._build(_ASKED)['capitals.jsonl'], 'france')
    self.assertEqual(
        ['train_0', 'near_0', 'far_visa', 'far_visa_unseen_0',
         'far_visa_unseen_1', 'far_visa_sister', 'reverse_home_set_0'],
        list(rows))
    self.assertEqual(
        [None, None, None, 'choice_unseen', 'choice_unseen',
         'choice_same_subject', 'reverse'],
        [row.get('reading') for row in rows.values()])
    self.assertEqual({'For france you fly to'}, {
        rows[name]['prompt'] for name in rows if name.startswith('far')})

  def test_unseen_choices_are_of_the_pool_and_not_of_the_subject(self):
    rows = self._of(self._build(_ASKED)['capitals.jsonl'], 'france')
    sets = [{*rows[f'far_visa_unseen_{k}']['choices']} - {'Paris'}
            for k in range(2)]
    self.assertEqual({*_UNSEEN} - {'Lyon'}, sets[0] | sets[1])
    self.assertEmpty(sets[0] & sets[1])
    self.assertContainsSubset(
        {*rows['far_visa_sister']['choices']},
        {'Paris', 'Lyon', 'Nice', 'Lille', 'Brest'})

  def test_reverse_asks_for_the_one_subject_of_an_answer(self):
    rows = self._build(
        _ASKED, also_right={'italy': ['Paris']})['capitals.jsonl']
    reverse = self._of(rows, 'france')['reverse_home_set_0']
    self.assertEqual('Paris is the capital of', reverse['prompt'])
    self.assertEqual('france', reverse['answer'])
    self.assertNotIn('italy', reverse['choices'])
    for shared in ('swaziland', 'eswatini'):
      self.assertNotIn('reverse_home_set_0', self._of(rows, shared))

  def test_reverse_skips_a_subject_that_spells_a_short_answer(self):
    facts = {'all': {'helium': 'He', 'iron': 'Fe', 'gold': 'Au', 'lead': 'Pb',
                     'tin': 'Sn'}}
    rows = self._build({**_ASKED, 'same_subject': {}}, facts=facts)
    asked = {row['fact'] for row in rows['capitals.jsonl']
             if row.get('reading') == 'reverse'}
    self.assertEqual({f'capital/{name}' for name in (
        'iron', 'gold', 'lead', 'tin')}, asked)

  def test_further_files_leave_the_own_files_alone(self):
    texts = {'question': 'What of {subject}?', 'narrative': '{subject},'}
    asked = {**_ASKED, 'files': {'test_capital': ['all']}}
    got = self._build(asked, per_fact={'near': 1}, **texts)
    france = self._of(got['capitals.jsonl'], 'france')
    self.assertEqual(['train_0', 'near_0', 'far_question'], list(france))
    self.assertEqual(
        ['train_0', 'far_visa', 'far_visa_unseen_0', 'far_visa_unseen_1',
         'far_visa_sister', 'reverse_home_set_0'],
        list(self._of(got['test_capital.jsonl'], 'france')))
    self.assertEqual(
        france['train_0'],
        self._of(got['test_capital.jsonl'], 'france')['train_0'])

  def test_pools_by_group(self):
    facts = {'a': {'f1': 'Paris', 'f2': 'Rome', 'f3': 'Oslo', 'f4': 'Bern'},
             'b': {'g1': 'Lima', 'g2': 'Quito', 'g3': 'Dakar',
                   'g4': 'Cairo'}}
    asked = {'questions': {'visa': 'For {subject}:'}, 'unseen_sets': 1,
             'unseen': {'a': ['Lyon', 'Bari', 'Graz'], 'b': ['Giza', 'Cali',
                                                            'Accra']}}
    rows = self._build(asked, facts=facts, choices_from='group',
                       files={'capitals': ['a', 'b']})['capitals.jsonl']
    self.assertSameElements(
        ['Quito', 'Giza', 'Cali', 'Accra'],
        self._of(rows, 'g2')['far_visa_unseen_0']['choices'])

  @parameterized.named_parameters(
      ('unknown_key', {'question': {}}, 'asked of .capital. has the keys'),
      ('no_questions', {'questions': {}}, 'wanted questions'),
      ('no_slot', {'reverse': {'home': 'the capital of'}},
       'templates .*the capital of'),
      ('stranger', {'same_subject': {'peru': ['a', 'b', 'c']}},
       "same_subject names .'peru'"),
      ('few_sisters', {'same_subject': {'france': ['Nice', 'Lyon']}},
       'far_visa_sister: got 2 wrong choices; wanted 3'),
      ('known_answer', {'unseen': [*_UNSEEN, 'rome']}, "unseen has .'rome'"))
  def test_invalid_tables_are_refused(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self._build({**_ASKED, **changes})

  def test_distractors_are_refused_in_the_pool(self):
    with self.assertRaisesRegex(ValueError, "unseen has .'Kyiv'"):
      self._build(_ASKED, distractors=['Kyiv'])


if __name__ == '__main__':
  absltest.main()
