"""Splits are role x use, and roles may not overlap."""

import json

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data.readers import text as text_lib


def make(name, fact, use='train', prompt=None, answer='A'):
  return questions_lib.Question(
      id=name, fact=fact, relation='r', prompt=prompt or f'prompt of {name}',
      answer=answer, choices=(answer, 'no'), use=use, source=f'file:{name}')


def build(forget=None, retain=None, heldout=(), **options):
  return splits_lib.build_splits(
      forget=[make('f', 'F')] if forget is None else forget,
      retain=[make('x', 'R')] if retain is None else retain,
      heldout=list(heldout), text=[], **options)


class BuildSplitsTest(parameterized.TestCase):

  def test_role_times_use(self):
    got = build(
        forget=[make(u, 'F', u) for u in ('train', 'near', 'far')],
        retain=[make(f'r{u}', 'R', u) for u in ('train', 'near', 'far')],
        heldout=[make(f'h{u}', 'H', u) for u in ('train', 'near', 'far')])
    ids = {k: [q.id for q in v] for k, v in got.evaluation.items()}
    self.assertEqual(ids, {
        'forget': ['train'], 'forget_paraphrase': ['near'],
        'forget_far': ['far'], 'retain': ['rnear', 'rfar'],
        'retain_heldout': ['htrain', 'hnear', 'hfar']})
    self.assertEqual([q.id for q in got.forget_train], ['train'])
    self.assertEqual([q.id for q in got.retain_train], ['rtrain'])
    self.assertEqual(got.missing, ())

  def test_sets_without_near_or_far_are_named_missing(self):
    self.assertEqual(build().missing, (
        'forget_paraphrase', 'forget_far', 'retain', 'retain_heldout'))

  @parameterized.named_parameters(
      ('forget_retain', {'retain': [make('r', 'F')]}, 'retain', 'forget'),
      ('forget_heldout', {'heldout': [make('r', 'F')]}, 'heldout', 'forget'),
      ('retain_heldout', {'heldout': [make('r', 'R')]}, 'heldout', 'retain'))
  def test_shared_fact(self, sets, role, other):
    with self.assertRaisesRegex(
        ValueError, f'file:r: fact .* of the {role} set is also in the {other}'
        ' set at file:.*Remove'):
      build(**sets)

  def test_shared_prompt_and_answer_up_to_case_and_space(self):
    retain = [make('r', 'R', prompt='Prompt  of F', answer='a')]
    forget = [make('f', 'F', prompt='prompt of f', answer='A')]
    with self.assertRaisesRegex(ValueError, 'file:r: prompt .*at file:f'):
      build(forget=forget, retain=retain)
    build(forget=forget, retain=[  # Another answer is another question.
        make('r', 'R', prompt='prompt of f', answer='b')])

  @parameterized.parameters('forget', 'retain')
  def test_held_out_phrasing_may_not_be_a_trained_one(self, role):
    same = [make('a', 'X', prompt='p'), make('b', 'X', 'near', prompt='p')]
    with self.assertRaisesRegex(ValueError, f'file:b: the {role} .*at file:a'):
      build(**{role: same})

  def test_ids_are_unique_over_roles(self):
    with self.assertRaisesRegex(ValueError, "id 'same' is already used"):
      build(forget=[make('same', 'F')],
            retain=[make('same', 'R', prompt='another prompt')])

  @parameterized.parameters('forget', 'retain')
  def test_nothing_to_train(self, role):
    sets = {role: [make('n', 'N', 'near')]}
    with self.assertRaisesRegex(
        ValueError, f"The {role} set .* no question of use 'train'"):
      build(**sets)
    build(**sets, require_train=False)


class ReadSplitsTest(absltest.TestCase):

  def write(self, name, *lines):
    return self.create_tempfile(name, '\n'.join(lines)).full_path

  def line(self, name, fact, **fields):
    return json.dumps({
        'id': name, 'fact': fact, 'relation': 'r', 'prompt': f'p {name}',
        'answer': 'A', 'choices': ['A', 'B'], 'use': 'train'} | fields)

  def test_files_of_a_role_are_joined(self):
    got = splits_lib.read_splits(
        forget=[self.write('a', self.line('a', 'A')),
                self.write('b', self.line('b', 'B'))],
        retain=[self.write('c', self.line('c', 'C'))],
        text=[self.write('t.txt', 'Some text.')])
    self.assertEqual([q.id for q in got.forget_train], ['a', 'b'])
    self.assertEqual(got.text[0].kind, 't')
    self.assertIn('retain_heldout', got.missing)

  def test_same_file_twice_is_refused(self):
    path = self.write('a', self.line('a', 'A'))
    with self.assertRaisesRegex(ValueError, f'{path}:1: id .*used'):
      splits_lib.read_splits(
          forget=[path, path], retain=[self.write('b', self.line('b', 'B'))])

  def test_overlap_names_both_lines(self):
    forget = self.write('f', self.line('x', 'X'), self.line('a', 'A'))
    retain = self.write('r', self.line('b', 'A'))
    with self.assertRaisesRegex(ValueError, f'{retain}:1: .*at {forget}:2'):
      splits_lib.read_splits(forget=[forget], retain=[retain])

  def test_role_without_a_file(self):
    path = self.write('a', self.line('a', 'A'))
    with self.assertRaisesRegex(ValueError, 'Give --data_retain=FILE'):
      splits_lib.read_splits(forget=[path], retain=[])
    got = splits_lib.read_splits(
        forget=[path], retain=[], require_train=False)
    self.assertEqual(got.missing, (
        'forget_paraphrase', 'forget_far', 'retain', 'retain_heldout'))


class TextTest(absltest.TestCase):

  def test_plain_file_is_one_document_of_its_name(self):
    path = self.create_tempfile('prose.txt', 'One.\n\nTwo.').full_path
    self.assertEqual(text_lib.read_text(path), [
        text_lib.TextDocument(text='One.\n\nTwo.', kind='prose')])

  def test_jsonl_by_kind(self):
    path = self.create_tempfile('t.jsonl', '\n'.join(
        json.dumps({'text': t, 'kind': k})
        for t, k in (('a', 'x'), ('b', 'y'), ('c', 'x')))).full_path
    groups = text_lib.by_kind(text_lib.read_text(path))
    self.assertEqual(
        {k: [d.text for d in v] for k, v in groups.items()},
        {'x': ['a', 'c'], 'y': ['b']})

  def test_bad_files(self):
    path = self.create_tempfile('t.jsonl', '{"text": "a"}').full_path
    with self.assertRaisesRegex(ValueError, f"{path}:1: lacks .*'kind'"):
      text_lib.read_text(path)
    path = self.create_tempfile('t.txt', ' \n').full_path
    with self.assertRaisesRegex(ValueError, 'is empty; wanted text'):
      text_lib.read_text(path)


if __name__ == '__main__':
  absltest.main()
