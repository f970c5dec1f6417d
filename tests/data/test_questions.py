"""The question reader: fields that it keeps, and files that it refuses."""

import json

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import questions as questions_lib
from mansu_jax.data.readers import jsonl

GOOD = {
    'id': 'capital/france/train_0', 'fact': 'capital/france',
    'relation': 'capital', 'prompt': 'The capital of France is',
    'answer': 'Paris', 'choices': ['Rome', 'Paris'], 'use': 'train'}


def changed(**fields):
  return json.dumps(GOOD | fields)


def without(field, **fields):
  return json.dumps({k: v for k, v in (GOOD | fields).items() if k != field})


class ReadQuestionsTest(parameterized.TestCase):

  def write(self, *lines):
    return self.create_tempfile('q.jsonl', '\n'.join(lines)).full_path

  def test_reads_in_order_and_ignores_further_fields(self):
    path = self.write(
        changed(note='x'), '', changed(id='b', use='far', answer='Rome'))
    first, second = questions_lib.read_questions(path)
    self.assertEqual(first.choices, ('Rome', 'Paris'))
    self.assertEqual((first.answer_index, first.chance), (1, 0.5))
    self.assertEqual(first.source, f'{path}:1')
    self.assertEqual((second.id, second.use), ('b', 'far'))
    self.assertEqual(second.source, f'{path}:3')

  def test_a_train_line_needs_no_choices(self):
    question, = questions_lib.read_questions(self.write(without('choices')))
    self.assertEqual(question.choices, ('Paris',))

  def test_bom_and_windows_line_ends(self):
    path = self.create_tempfile('q.jsonl').full_path
    with open(path, 'wb') as file:
      file.write(('\ufeff' + changed() + '\r\n').encode())
    self.assertLen(questions_lib.read_questions(path), 1)

  @parameterized.named_parameters(
      ('truncated', changed()[:40], 'is not JSON'),
      ('not_an_object', '["a"]', 'contains a list'),
      ('use', changed(use='tain'), "'tain'; wanted one of train, near, far"),
      ('missing', without('fact'), "lacks the field 'fact'.*Add 'fact'"),
      ('missing_choices', without('choices', use='near'),
       "lacks the field 'choices'"),
      ('wrong_type', changed(prompt=3), "'prompt' is '3', a int; wanted a str"),
      ('bool', changed(answer=True), "'answer' is 'true', a bool"),
      ('null', changed(answer=None), "'answer' is 'null', a NoneType"),
      ('blank', changed(answer=' '), "'answer' is blank"),
      ('choices_text', changed(choices='Paris'), "'choices' is 'Paris', a str"),
      ('choice_type', changed(choices=['Paris', 1]), "'choices' is '1', a int"),
      ('choice_blank', changed(choices=['Paris', '']), 'blank entry'),
      ('one_choice', changed(choices=['Paris']), 'has 1 entries; wanted two'),
      ('duplicates', changed(choices=['Paris', 'Rome', 'Paris ']),
       r"repeats \['Paris'\]"),
      ('no_answer', changed(choices=['Rome', 'Oslo']),
       "answer 'Paris' is not among the choices"))
  def test_bad_line_is_named(self, line, message):
    path = self.write(changed(id='fine'), line)
    with self.assertRaisesRegex(ValueError, f'{path}:2: .*{message}'):
      questions_lib.read_questions(path)

  def test_repeated_id(self):
    path = self.write(changed(), changed(prompt='other'))
    with self.assertRaisesRegex(ValueError, f'{path}:2.*used at {path}:1'):
      questions_lib.read_questions(path)

  @parameterized.parameters('', '\n\n  \n')
  def test_empty_file(self, text):
    path = self.create_tempfile('q.jsonl', text).full_path
    with self.assertRaisesRegex(ValueError, 'is empty; wanted at least one'):
      questions_lib.read_questions(path)

  def test_missing_file_and_folder(self):
    with self.assertRaisesRegex(ValueError, "'nowhere.jsonl' does not exist"):
      questions_lib.read_questions('nowhere.jsonl')
    with self.assertRaisesRegex(ValueError, 'is a folder'):
      questions_lib.read_questions(self.create_tempdir().full_path)

  def test_not_text(self):
    path = self.create_tempfile('q.jsonl').full_path
    with open(path, 'wb') as file:
      file.write(b'{"id": "\xff\xfe"}')
    with self.assertRaisesRegex(ValueError, 'byte 8 is not UTF-8'):
      questions_lib.read_questions(path)


class ResolveTest(absltest.TestCase):

  def test_shipped_names_need_no_suffix(self):
    names = jsonl.shipped_names()
    if not names:
      self.skipTest('The package holds no shipped data.')
    stem = names[0].rsplit('.', 1)[0]
    self.assertEqual(
        questions_lib.resolve(f'shipped:{stem}'),
        questions_lib.resolve(f'shipped:{names[0]}'))

  def test_unknown_shipped_name_lists_the_known(self):
    for name in ('nothing', '../questions.py', ''):
      with self.assertRaisesRegex(ValueError, 'does not exist; wanted one of'):
        questions_lib.resolve(f'shipped:{name}')

  def test_sha256(self):
    path = self.create_tempfile('a', 'abc').full_path
    self.assertStartsWith(jsonl.sha256(path), 'ba7816bf8f01cfea')


if __name__ == '__main__':
  absltest.main()
