"""The shipped general text: schema, lengths, and forbidden content."""

import collections
import json
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized

_SHIPPED = (
    pathlib.Path(__file__).resolve().parents[2]
    / 'mansu_jax'
    / 'data'
    / 'shipped'
)

_RETAIN = 'text_retain.jsonl'
_SUBJECTS = 'text_subjects.jsonl'
_HELDOUT = 'text_heldout.jsonl'
_HELDOUT_SAME = 'text_heldout_same.jsonl'
_ALL = (_RETAIN, _SUBJECTS, _HELDOUT, _HELDOUT_SAME)
_TRAINED_ON = (_RETAIN, _SUBJECTS)
_CAPITALS = ('capitals_europe.jsonl', 'capitals_other.jsonl')

# Capitals of countries that the question files do not ask about.
_OTHER_CAPITALS = (
    'London', 'Amsterdam', 'The Hague', 'Prague', 'Kyiv', 'Nicosia',
    'Pretoria', 'Cape Town', 'Jakarta', 'Manila', 'Jerusalem', 'Washington',
    'Mexico City', 'Brasilia', 'Bogota', 'Dodoma', 'Tunis', 'Algiers',
    'Singapore', 'Kinshasa', 'Panama City', 'San Salvador', 'Delhi',
)

# Words of the relations held out for the evaluation of nearby knowledge.
_HELD_OUT_RELATIONS = re.compile(
    r'\b(capitals?|continent\w*|europe\w*|asian?|(?<!South )africa\w*'
    r'|americas?|americans?|oceania|rivers?|mountains?|alps|alpine|andes'
    r'|andean|himalaya\w*|lakes?|towers?|monuments?|palaces?|cathedrals?'
    r'|temples?|pyramids?|neighbour\w*|borders?)\b',
    re.IGNORECASE,
)


def _read(name):
  """The rows of one shipped JSONL file."""
  lines = (_SHIPPED / name).read_text(encoding='utf-8').splitlines()
  return [json.loads(line) for line in lines]


def _texts(name):
  return [row['text'] for row in _read(name)]


def _kinds(name):
  return collections.Counter(row['kind'] for row in _read(name))


def _capital_questions():
  return [row for name in _CAPITALS for row in _read(name)]


def _named(names):
  """A pattern that finds any of the names as whole words, case kept."""
  longest_first = sorted(names, key=len, reverse=True)
  return re.compile(r'\b(' + '|'.join(map(re.escape, longest_first)) + r')\b')


def _country(fact):
  return fact.split('/')[1].replace('_', ' ').title()


class ShippedTextTest(parameterized.TestCase):

  @parameterized.parameters(*_ALL)
  def test_every_line_is_one_text_and_its_kind(self, name):
    rows = _read(name)
    self.assertNotEmpty(rows)
    for row in rows:
      self.assertEqual(set(row), {'text', 'kind'})
      self.assertRegex(row['kind'], r'^[a-z_]+$')
      self.assertEqual(row['text'], ' '.join(row['text'].split()))

  @parameterized.parameters(*_ALL)
  def test_texts_are_plain(self, name):
    for text in _texts(name):
      self.assertTrue(text.isascii(), msg=text)
      self.assertNotRegex(text, r'\*\*|^#|`|\]\(')
      self.assertRegex(text, r'[.?!"]$|^(Hi|Hey|Hello|Dear|Good|Mum)\b')

  @parameterized.parameters(
      (_RETAIN, 70, 110),
      (_SUBJECTS, 50, 70),
      (_HELDOUT, 80, 130),
      (_HELDOUT_SAME, 70, 110),
  )
  def test_word_counts(self, name, least, most):
    for text in _texts(name):
      self.assertBetween(len(text.split()), least, most, msg=text)

  def test_many_kinds_evenly(self):
    retain, heldout = _kinds(_RETAIN), _kinds(_HELDOUT)
    self.assertGreaterEqual(len(retain), 8)
    self.assertGreaterEqual(min(retain.values()), 10)
    self.assertGreaterEqual(len(heldout), 5)
    self.assertGreaterEqual(min(heldout.values()), 8)
    self.assertIn('travel_geography', heldout)
    self.assertEqual(set(_kinds(_SUBJECTS)), {'country'})

  def test_heldout_kinds_are_not_trained_on(self):
    trained_on = set(_kinds(_RETAIN)) | set(_kinds(_SUBJECTS))
    self.assertEmpty(trained_on & set(_kinds(_HELDOUT)))

  def test_heldout_same_kind_text_has_retain_kinds(self):
    same = _kinds(_HELDOUT_SAME)
    self.assertLen(same, 4)
    self.assertLessEqual(set(same), set(_kinds(_RETAIN)))
    self.assertGreaterEqual(min(same.values()), 2)

  def test_no_passage_repeats_another(self):
    passages = [text for name in _ALL for text in _texts(name)]
    owners = collections.defaultdict(set)
    for i, text in enumerate(passages):
      words = re.findall(r"[a-z0-9']+", text.lower())
      for j in range(len(words) - 7):
        owners[' '.join(words[j : j + 8])].add(i)
    shared = [run for run, where in owners.items() if len(where) > 1]
    self.assertEmpty(shared)

  @parameterized.parameters(*_TRAINED_ON)
  def test_text_trained_on_names_no_capital(self, name):
    asked = {row['answer'].strip() for row in _capital_questions()
             if row.get('reading') != 'reverse'}
    self.assertGreater(len(asked), 50)
    capitals = _named(asked | set(_OTHER_CAPITALS))
    for text in _texts(name):
      self.assertEmpty(capitals.findall(text), msg=text)

  def test_subjects_keep_off_the_held_out_relations(self):
    for text in _texts(_SUBJECTS):
      self.assertNotRegex(text, _HELD_OUT_RELATIONS)

  def test_each_country_to_forget_has_one_passage_of_its_own(self):
    passages = _texts(_SUBJECTS)
    forget = {_country(row['fact']) for row in _read(_CAPITALS[0])}
    known = forget | {_country(row['fact']) for row in _capital_questions()}
    named = [set(_named(known).findall(text)) for text in passages]
    for countries, text in zip(named, passages):
      self.assertLessEqual(len(countries), 1, msg=text)
    counts = collections.Counter(c for countries in named for c in countries)
    self.assertEqual({c: counts[c] for c in forget}, dict.fromkeys(forget, 1))


if __name__ == '__main__':
  absltest.main()
