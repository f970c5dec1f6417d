"""Attribution pairs: made of questions, and read from files."""

import collections
import dataclasses
import json

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import pair_files
from tests.eval import toy_model

CAPITALS = {
    'aaa': 'Xa', 'bbb': 'Yb', 'ccc': 'Zc', 'longland': 'Wd', 'farshore': 'Ve'}
TEMPLATES = ('capital of {} is', 'in {} they govern from', '{} has the city')


def some_questions(separator='/', capitals=None):
  capitals = capitals or CAPITALS
  return [
      questions_lib.Question(
          id=separator.join(('capital', name, f'train_{t}')),
          fact=f'capital/{name}', relation='capital',
          prompt=template.format(name), answer=city,
          choices=tuple(sorted(set(capitals.values()) | {'Other'})),
          use='train')
      for name, city in capitals.items()
      for t, template in enumerate(TEMPLATES)]


class BuildPairsTest(parameterized.TestCase):

  def build(self, questions=None, max_pairs=99, seed=0, others=()):
    self.tokenizer = toy_model.ToyTokenizer(bos=1)
    return pairs_lib.build_pairs(
        questions or some_questions(), self.tokenizer, max_pairs, seed,
        others=others)

  @parameterized.named_parameters(('template', '/'), ('no_template', '-'))
  def test_pairs_differ_in_the_subject_only(self, separator):
    pairs = self.build(some_questions(separator))
    self.assertLen(pairs, 15)
    for pair in pairs:
      self.assertLen(pair.corrupt_ids, len(pair.clean_ids))
      self.assertNotEqual(pair.answer_id, pair.corrupt_answer_id)
      clean, corrupt = (
          self.tokenizer.decode(ids[1:]).split()
          for ids in (pair.clean_ids, pair.corrupt_ids))
      differing = [(a, b) for a, b in zip(clean, corrupt) if a != b]
      ((subject, other),) = differing
      self.assertEqual(pair.fact, f'capital/{subject}')
      self.assertEqual(
          self.tokenizer.decode([pair.answer_id]), ' ' + CAPITALS[subject])
      self.assertEqual(
          self.tokenizer.decode([pair.corrupt_answer_id]),
          ' ' + CAPITALS[other])

  def test_partners_of_questions_of_any_use(self):
    questions = [dataclasses.replace(q, use='far') for q in some_questions()]
    tokenizer = toy_model.ToyTokenizer()
    got = pairs_lib.find_partners(
        questions, tokenization.encode_questions(questions, tokenizer))
    by_id = {q.id: i for i, q in enumerate(questions)}
    for question in questions:
      fact, form = question.id.rsplit('/', 1)
      same = [name for name in CAPITALS if len(name) // 4 == (
          len(fact.split('/')[1]) // 4) and f'capital/{name}' != fact]
      self.assertEqual(
          got[by_id[question.id]], [by_id[f'capital/{n}/{form}'] for n in same])

  def test_deterministic_and_seeded(self):
    self.assertEqual(self.build(seed=1), self.build(seed=1))
    self.assertNotEqual(self.build(seed=1), self.build(seed=2))

  @parameterized.parameters(5, 7, 10)
  def test_prefix_is_spread_over_facts_and_templates(self, most):
    pairs = self.build(max_pairs=most)
    self.assertLen(pairs, most)
    facts = collections.Counter(pair.fact for pair in pairs)
    self.assertLen(facts, 5)
    self.assertLessEqual(max(facts.values()) - min(facts.values()), 1)
    forms = {self.tokenizer.decode(p.clean_ids[-1:]) for p in pairs}
    self.assertLen(forms, 3)

  def test_same_first_answer_token_is_no_partner(self):
    with self.assertRaisesRegex(ValueError, 'None of the 6 .*has a partner'):
      self.build(some_questions(capitals={'aaa': 'Xa', 'bbb': 'Xa'}))

  def test_other_length_is_no_partner(self):
    with self.assertRaisesRegex(ValueError, 'equal token length'):
      self.build(some_questions(capitals={'aaa': 'Xa', 'longland': 'Wd'}))

  def test_one_entity_takes_counterfactual_subjects_from_others(self):
    entity = [
        dataclasses.replace(
            q, id=f'{relation}/{q.id}', fact=f'{relation}/x', relation=relation,
            prompt=q.prompt.replace('capital', relation))
        for relation in ('king', 'river')
        for q in some_questions(capitals={'aaa': 'Xa'})]
    cities = {'bbb': 'Yb', 'ccc': 'Zc', 'longland': 'Wd'}
    others = some_questions(capitals=cities)
    pairs = self.build(entity, others=others)
    self.assertLen(pairs, 6)
    self.assertEqual({p.fact for p in pairs}, {'king/x', 'river/x'})
    stand_ins = collections.Counter()
    for pair in pairs:
      clean, corrupt = (self.tokenizer.decode(ids[1:]).split()
                        for ids in (pair.clean_ids, pair.corrupt_ids))
      ((subject, other),) = [
          (a, b) for a, b in zip(clean, corrupt, strict=True) if a != b]
      self.assertEqual(subject, 'aaa')
      stand_ins[other] += 1
      self.assertEqual(self.tokenizer.decode([pair.answer_id]), ' Xa')
      self.assertEqual(
          self.tokenizer.decode([pair.corrupt_answer_id]), ' Oth')
    self.assertEqual(stand_ins, {'bbb': 3, 'ccc': 3})  # As many tokens.
    self.assertLen(self.build(entity, others=others, max_pairs=2), 2)
    confusable = [
        dataclasses.replace(q, relation='king')
        for q in some_questions(capitals={'ddd': 'Ud', 'eee': 'Te'})]
    for pair in self.build(entity, others=others + confusable):
      self.assertRegex(self.tokenizer.decode(pair.corrupt_ids), 'ddd|eee')
    with self.assertRaisesRegex(
        ValueError, 'None of the 6 .*same number of tokens'):
      self.build(entity, others=some_questions(capitals={'longland': 'Wd'}))

  def test_others_are_unused_if_facts_have_partners(self):
    others = some_questions(capitals={'zzz': 'Yb'})
    self.assertEqual(self.build(others=others), self.build())

  def test_only_train_questions_are_paired(self):
    near = [
        questions_lib.Question(**{
            **{f: getattr(q, f) for f in (
                'id', 'fact', 'relation', 'prompt', 'answer', 'choices')},
            'use': 'near'}) for q in some_questions()]
    with self.assertRaisesRegex(ValueError, 'None of the 0 train questions'):
      self.build(near)

  def test_max_pairs_of_0_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'max_pairs is 0'):
      self.build(max_pairs=0)


IDS = {'clean_ids': [3, 4], 'corrupt_ids': [3, 5], 'answer_id': 6,
       'corrupt_answer_id': 7}
TEXT = {'clean': 'a b', 'corrupt': 'a c', 'answer': 'd', 'corrupt_answer': 'e'}


class ReadPairsTest(parameterized.TestCase):

  def write(self, *records):
    return self.create_tempfile(
        'pairs.jsonl', '\n'.join(map(json.dumps, records))).full_path

  def test_ids_need_no_tokenizer(self):
    path = self.write(IDS, IDS | {'fact': 'x'})
    first, second = pair_files.read_pairs(path).pairs
    self.assertEqual(first, pairs_lib.AttributionPair(
        (3, 4), (3, 5), 6, 7, f'{path}:1'))
    self.assertEqual(second.fact, 'x')

  def test_text_is_tokenized(self):
    tokenizer = toy_model.ToyTokenizer(bos=1)
    (pair,) = pair_files.read_pairs(self.write(TEXT), tokenizer).pairs
    self.assertEqual(pair.clean_ids[0], 1)
    self.assertEqual(tokenizer.decode(pair.corrupt_ids[1:]), 'a c')
    self.assertEqual(tokenizer.decode([pair.answer_id]), ' d')
    self.assertEqual(tokenizer.decode([pair.corrupt_answer_id]), ' e')

  def test_text_takes_precedence_over_incomplete_ids(self):
    tokenizer = toy_model.ToyTokenizer(bos=1)
    want = pair_files.read_pairs(self.write(TEXT | {'fact': 'x'}), tokenizer)
    with self.assertLogs(level='WARNING') as logs:
      got = pair_files.read_pairs(self.write(
          TEXT | {'fact': 'x', 'clean_ids': [3]}), tokenizer)
    self.assertEqual(got, want)
    self.assertIn("ignores the fields ['clean_ids']", logs.output[0])

  @parameterized.named_parameters(
      ('missing', {k: v for k, v in TEXT.items() if k != 'answer'},
       "lacks the field 'answer'"),
      ('missing_id', {k: v for k, v in IDS.items() if k != 'answer_id'},
       "lacks the field 'answer_id'"),
      ('type', IDS | {'answer_id': 'six'}, "'answer_id' is 'six', a str"),
      ('bool', IDS | {'answer_id': True}, "'answer_id' is 'true', a bool"),
      ('item', IDS | {'clean_ids': [1, 'b']}, "'clean_ids' is 'b', a str"),
      ('empty', IDS | {'clean_ids': [], 'corrupt_ids': []}, 'has 0 tokens'),
      ('alike', TEXT | {'corrupt': TEXT['clean']}, 'have the same tokens'),
      ('negative', IDS | {'clean_ids': [-1, 4]}, 'range from -1 to 7'),
      ('same', TEXT | {'corrupt_answer': 'd'}, 'both answers start with token'))
  def test_bad_line_is_named(self, record, message):
    path = self.write(IDS, record)
    with self.assertRaisesRegex(ValueError, f'{path}:2: .*{message}'):
      pair_files.read_pairs(path, toy_model.ToyTokenizer())

  def test_all_pairs_of_unequal_length_are_named(self):
    tokenizer, longer = toy_model.ToyTokenizer(), {'corrupt': 'a c d'}
    path = self.write(TEXT, TEXT | longer, IDS, IDS | {'clean_ids': [3, 4, 5]})
    with self.assertRaisesRegex(ValueError, (
        f'{path}: 2 of 4 pairs .*different token length; wanted equal lengths'
        '.*: line 2 has 2 and 3; line 4 has 3 and 2. Choose .*'
        '--attribution_skip_unequal')):
      pair_files.read_pairs(path, tokenizer)
    found = pair_files.read_pairs(path, tokenizer, skip_unequal=True)
    self.assertEqual(found.skipped, 2)
    self.assertEqual(
        [p.fact for p in found.pairs], [f'{path}:1', f'{path}:3'])
    path = self.write(TEXT, *[TEXT | longer] * 23)
    with self.assertRaisesRegex(
        ValueError, '23 of 24 pairs .* line 21 has 2 and 3; and 3 more. Cho'):
      pair_files.read_pairs(path, tokenizer)
    path = self.write(TEXT | longer)
    for skip, error in ((False, ValueError), (True, pairs_lib.NoPairs)):
      with self.assertRaisesRegex(
          error, 'line 1 has 2 and 3. Choose .*tokens.$') as caught:
        pair_files.read_pairs(path, tokenizer, skip_unequal=skip)
      self.assertIs(type(caught.exception), error)

  def test_text_in_chat_form(self):
    tokenizer = toy_model.ChatTokenizer(bos=1)
    (pair,) = pair_files.read_pairs(
        self.write(TEXT), tokenizer, chat=True).pairs
    self.assertEqual(tokenizer.decode(pair.clean_ids), '<user> a b <bot> ')
    self.assertEqual(tokenizer.decode([pair.answer_id]), 'd')

  def test_text_without_a_tokenizer(self):
    with self.assertRaisesRegex(
        ValueError, 'has no tokenizer.*tokenizer.json.*clean_ids'):
      pair_files.read_pairs(self.write(TEXT))

  def test_fields_that_are_ignored_are_named_once(self):
    path = self.write(IDS, IDS | {'facts': 'x', 'id': 'y'}, IDS | {'id': 'z'})
    with self.assertLogs(level='WARNING') as logs:
      read = pair_files.read_pairs(path)
    self.assertEqual(
        [p.fact for p in read.pairs], [f'{path}:{i}' for i in (1, 2, 3)])
    self.assertLen(logs.output, 1)
    self.assertRegex(
        logs.output[0],
        rf"{path}:2: .* ignores the fields \['facts', 'id'\].*fact")


if __name__ == '__main__':
  absltest.main()
