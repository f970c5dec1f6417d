"""The tables in the pages are those of the stored records."""

import contextlib
import copy
import gzip
import io
import json
import pathlib
import re
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.tables import __main__ as command
from experiments.tables import cells
from experiments.tables import controls
from experiments.tables import pages
from experiments.tables import pooled
from experiments.tables import premise
from experiments.tables import quickstart
from experiments.tables import stored
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import gaps
from tests.report import records

_PRECISIONS = ('fp', 'nf4')
# Split, reading and phrasings of the questions of a stored run by hand.
_ASKED = (
    ('forget', 'choice', ('train_0',)),
    ('forget_paraphrase', 'choice', ('near_0',)),
    ('forget_far', 'choice', ('far_quiz',)),
    ('forget_unseen', 'choice_unseen', ('far_quiz_unseen_0', 'far_quiz_unseen_1')),
    ('forget_reverse', 'reverse', ('reverse_set_0',)),
    ('retain', 'choice', ('near_0',)),
    ('retain_heldout', 'choice', ('near_0',)))


def _line(split, reading, fact, form, rng):
  """A question and its answers, right with probabilities by model."""
  answer = lambda share: {
      'correct': bool(rng.random() < share), 'ignorance': float(share < 0.9) / 4}
  kept = split.startswith('retain')
  return {
      'split': split, 'id': f'{fact}/{form}', 'fact': fact,
      'relation': fact.split('/')[0], 'reading': reading, 'prompt': 'What?',
      'answer': 'a', 'choices': ['a', 'b', 'c', 'd'], 'models': {
          'base': {p: answer(0.95) for p in _PRECISIONS},
          'unlearned': {p: answer(0.9 if kept else 0.5) for p in _PRECISIONS}}}


def _answers(relation, seed, facts=30):
  rng = np.random.default_rng(seed)
  name = lambda split, i: f'{relation if "forget" in split else split}/{i}'
  return [_line(split, reading, name(split, i), form, rng)
          for split, reading, forms in _ASKED
          for i in range(facts) for form in forms]


class StoredTestCase(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.results = pathlib.Path(self.create_tempdir().full_path)

  def save(self, name, seed=0, relation='capital', change=None):
    """Stores a run by hand.

    Args:
      name: folder of the setting.
      seed: of the run.
      relation: of the forget facts.
      change: function that changes the record.
    """
    record = copy.deepcopy(records.make())
    record['config']['seed'] = seed
    record['environment']['commit'] = '0123456789abcdef'
    if change:
      change(record)
    folder = self.results / name / f's{seed}'
    folder.mkdir(parents=True)
    (folder / 'record.json').write_text(json.dumps(record))
    answers = _answers(relation, seed)
    for file, lines in (('answers', answers), ('generations', [
        {**line, 'reading': way} for line in answers[:60]
        for way in ('generation', 'generation_few_shot')])):
      with gzip.open(folder / f'{file}.jsonl.gz', 'wt') as out:
        out.write('\n'.join(map(json.dumps, lines)))
    return stored.Run(folder)


def _rows(text):
  """Cells of the tables in a text, by the first cell of the row."""
  return {cells_[0].strip(): [cell.strip() for cell in cells_[1:]]
          for row in re.findall(r'^\|(.*)\|$', text, re.MULTILINE)
          for cells_ in [row.split('|')]}


class PagesTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (f'{page.stem}_{name}', page, name) for page in pages.pages()
      for name in pages.blocks(page.read_text(encoding='utf-8')))
  def test_tables_are_those_of_the_records(self, page, name):
    found = pages.blocks(page.read_text(encoding='utf-8'))[name]
    self.assertEqual(
        found, pages.TABLES[name](stored.RESULTS),
        f'run `python -m experiments.tables --write {name}`')

  def test_each_table_is_in_one_page(self):
    found = [name for page in pages.pages()
             for name in pages.blocks(page.read_text(encoding='utf-8'))]
    self.assertCountEqual(found, pages.TABLES)


class BlocksTest(absltest.TestCase):

  _PAGE = ('Before.\n\n<!-- table: first -->\n| old |\n<!-- end -->\n\n'
           '<!-- table: test -->\n\n| kept |\n<!-- end -->\nAfter.\n')

  def test_blocks_are_found(self):
    self.assertEqual(pages.blocks(self._PAGE),
                     {'first': '| old |', 'test': '| kept |'})

  def test_other_text_and_tables_stay(self):
    got = pages.replaced(self._PAGE, {'first': r'| \1 new |'})
    self.assertEqual(got, self._PAGE.replace('| old |', r'| \1 new |'))
    self.assertEqual(
        pages.replaced(got, {'first': '| old |'}), self._PAGE)

  def test_broken_pages_are_refused(self):
    for page, message in (
        (self._PAGE.replace('<!-- end -->\n\n', '\n'), 'wanted each once'),
        (self._PAGE.replace('test', 'first'), 'wanted each once'),
        (self._PAGE.replace('test', 'tests'), "tables .'tests'.; wanted some")):
      with self.assertRaisesRegex(ValueError, message):
        pages.blocks(page)


class StoreTest(StoredTestCase):

  def _workdir(self, change=None):
    self.run_count = getattr(self, 'run_count', 0) + 1
    folder = self.results / f'run_{self.run_count}'
    folder.mkdir()
    record = copy.deepcopy(records.make())
    record['environment']['commit'] = '0123456'
    if change:
      change(record)
    (folder / 'record.json').write_text(json.dumps(record))
    (folder / 'answers.jsonl').write_text('{"id": 1}\n')
    (folder / 'generations.jsonl').write_text('{"id": 2}\n')
    return folder

  def test_equal_runs_give_equal_bytes(self):
    run, dest = self._workdir(), self.results / 'a' / 's0'
    stored.store(run, dest)
    self.assertEqual(sorted(path.name for path in dest.iterdir()), [
        'answers.jsonl.gz', 'generations.jsonl.gz', 'record.json'])
    self.assertEqual(stored.Run(dest).answers, [{'id': 1}])
    self.assertEqual(stored.Run(dest).generated, [{'id': 2}])
    before = {path.name: path.read_bytes() for path in dest.iterdir()}
    self.assertEqual(before['record.json'], (run / 'record.json').read_bytes())
    with mock.patch('time.time', return_value=1e9):
      stored.store(run, self.results / 'b' / 's0')
    self.assertEqual(before, {
        path.name: path.read_bytes()
        for path in (self.results / 'b' / 's0').iterdir()})

  def test_generations_of_an_earlier_run_go(self):
    run, dest = self._workdir(), self.results / 'a'
    stored.store(run, dest)
    (run / 'generations.jsonl').unlink()
    stored.store(run, dest)
    self.assertEqual(stored.Run(dest).generated, [])

  @parameterized.named_parameters(
      ('changes', lambda r: r['environment'].update(commit='01+changes'),
       'is of commit 01.changes'),
      ('no_commit', lambda r: r['environment'].update(commit=None),
       'is of commit None'),
      ('earlier', lambda r: r['environment'].update(
          earlier=[{'commit': '01+changes'}]), 'is of commit 01.changes'),
      ('path', lambda r: r['config'].update(workdir='/tmp/run'),
       'config.workdir of the run .* is /tmp/run'),
      ('path_in_a_list', lambda r: r['config']['data'].update(
          forget=['a.jsonl', '/b.jsonl']), 'config.data.forget'))
  def test_runs_that_nobody_can_repeat_are_refused(self, change, message):
    dest = self.results / 'dest'
    with self.assertRaisesRegex(ValueError, message):
      stored.store(self._workdir(change), dest)
    self.assertFalse(dest.exists())

  def test_an_unfinished_run_is_refused(self):
    run = self._workdir()
    (run / 'answers.jsonl').unlink()
    with self.assertRaisesRegex(ValueError, 'There is no answers.jsonl in'):
      stored.store(run, self.results / 'dest')

  def test_by_the_command(self):
    run, dest = self._workdir(), self.results / 'new' / 's0'
    self.assertEqual(command.main(['store', str(run), str(dest)]), 0)
    self.assertTrue((dest / 'record.json').is_file())
    with contextlib.redirect_stderr(io.StringIO()) as err:
      self.assertEqual(command.main(['store', str(dest), str(run)]), 2)
    self.assertIn('There is no answers.jsonl', err.getvalue())


class RunTest(StoredTestCase):

  def test_seeds_are_in_order(self):
    for seed in (2, 0):
      self.save('a', seed)
    self.assertEqual([r.seed for r in stored.find(self.results, 'a')], [0, 2])
    self.assertEqual(stored.find(self.results, 'none'), [])
    (self.results / 'a' / 's2').rename(self.results / 'a' / 's7')
    self.save('a', 2)
    with self.assertRaisesRegex(ValueError, r'seeds \[0, 2, 2\]; wanted each'):
      stored.find(self.results, 'a')

  def test_trained_and_kept_questions_are_not_asked(self):
    run = self.save('a')
    self.assertLen(run.asked('choice'), 60)
    self.assertEqual({line['split'] for line in run.asked('choice')},
                     {'forget_paraphrase', 'forget_far'})
    self.assertLen(run.asked('choice', 'choice_unseen'), 120)
    self.assertLen(run.asked('generation', 'generation_few_shot'), 120)

  @parameterized.named_parameters(
      ('of_each_answer', {'models': {'base': {'fp': {'ignorance': 0.5}}}}),
      ('by_model', {'ignorance': {'base': {'fp': 0.5}}}),
      ('of_all', {'ignorance': 0.5, 'models': {'base': {'fp': {}}}}))
  def test_ignorance_of_all_versions(self, line):
    self.assertEqual(stored.ignorance(line, 'base', 'fp'), 0.5)


class QuickstartTest(StoredTestCase):

  def test_nothing_is_stored(self):
    for table in pages.TABLES.values():
      self.assertEqual(table(self.results), cells.NOTHING)

  def test_one_seed_has_the_figures_of_the_library(self):
    run = self.save('quickstart')
    rows = _rows(quickstart.quickstart(self.results))
    lines = run.asked('choice_unseen')
    for p, cell in zip(_PRECISIONS, ('fp', 'NF4')):
      asked = stored.columns(lines, p)
      want = forgetting.known_share(
          *asked.right.T, asked.ignorance, asked.facts, asked.forms,
          resamples=2000)
      self.assertEqual(rows[f'known, unseen choices, {cell}'],
                       [cells.estimate(want.record())])
    lines = run.split('retain_heldout')
    drop = gaps.paired_drop(
        *(stored.right(lines, m, 'nf4') for m in stored.MODELS),
        stored.facts(lines), resamples=2000)
    self.assertEqual(rows['accuracy drop on held-out facts, NF4'],
                     [cells.estimate(drop.record(), 3, True)])
    self.assertEqual(rows['hidden share, fp'], ['0.38 [0.29, 0.47]'])
    self.assertIn('Code: 0123456.', quickstart.quickstart(self.results))

  def test_several_seeds(self):
    runs = [self.save('quickstart', seed) for seed in (0, 1, 2)]
    rows = _rows(quickstart.quickstart(self.results))
    over, deviation, *single = rows['accuracy drop on held-out facts, fp']
    drops = [np.mean([
        line['models']['base']['fp']['correct']
        - line['models']['unlearned']['fp']['correct']
        for line in run.split('retain_heldout')]) for run in runs]
    self.assertEqual(single, [cells.signed(x) for x in drops])
    self.assertEqual(deviation, f'{np.std(drops, ddof=1):.3f}')
    self.assertStartsWith(over, f'{np.mean(drops):+.3f} [')
    self.assertEqual(rows['hidden share, fp'],
                     ['0.38', '0.00', '0.38', '0.38', '0.38'])
    share = np.mean([line['models']['unlearned']['fp']['correct']
                     for run in runs for line in run.asked('reverse')])
    self.assertStartsWith(
        rows['which country has this capital? (30)'][2], f'{share:.2f} [')
    first = _rows(quickstart.readme(self.results))
    self.assertEqual(  # README has one seed.
        first, _rows(quickstart.answered(runs[:1])))

  def test_first_table_has_the_stored_methods(self):
    self.save('quickstart')
    rows = _rows(quickstart.first(self.results))
    self.assertEqual(list(rows), ['', '---', 'base', 'MANSU'])
    self.assertEqual(rows['base'][2:5], ['1.00', '1.00', cells.NONE])
    self.save('premise/circuit')
    self.assertLen(_rows(quickstart.first(self.results)), 5)
    self.assertEqual(rows['MANSU'][4], '-0.01 [-0.05, +0.02]')


class PremiseTest(StoredTestCase):

  def _save(self, arm, size, brought, known=0.3):
    def change(record):
      record['movement']['total']['relative'] = size
      record['survival']['nf4'] |= {'changed_codes': size, 'cosine': 1 - size}
      record['properties']['Q']['by_scheme']['nf4']['value'] = brought
      for reading in stored.CHOICES:
        record['forgetting'][reading]['known']['fp']['value'] = known

    self.save(f'premise/{arm}', change=change)

  def test_rows_and_rank_correlations(self):
    for arm, size, brought in (
        ('audit', 0.01, -0.02), ('circuit', 0.02, 0.1), ('lora', 0.03, 0.0),
        ('npo_1e-4', 0.04, 0.3)):
      self._save(arm, size, brought)
    self._save('npo_1e-6', 0.0001, 0.0, known=0.9)
    text = premise.premise(self.results)
    rows = _rows(text)
    self.assertIn('NPO, LoRA of rank 8', rows)
    self.assertNotIn('GradDiff, 1e-5', rows)
    self.assertIn('| NPO, 1e-4 | 4 % | 4 % |', text)
    self.assertIn('| circuit alone, without floor, projection and loop | 0.30 |'
                  ' 0.30 |', text)
    found = re.findall(r'^\| (.*?) \| (.*?) \| (.*?) \(p = .*? (\d) arms',
                       premise.correlations(premise.find(self.results)), re.M)
    self.assertEqual(found, [
        ('all arms', 'size of the edit', '+0.67', '5'),
        ('all arms', 'codes changed', '+0.67', '5'),
        ('all arms', 'cosine', '-0.67', '5'),
        ('arms that forgot', 'size of the edit', '+0.80', '4'),
        ('arms that forgot', 'codes changed', '+0.80', '4'),
        ('arms that forgot', 'cosine', '-0.80', '4')])

  def test_too_few_arms_have_no_correlation(self):
    self._save('audit', 0.01, 0.2)
    self.assertEqual(premise.correlations(premise.find(self.results)), '')
    self.assertIn('| GradDiff' if False else '| MANSU for NF4',
                  premise.premise(self.results))


class ControlsTest(StoredTestCase):

  def test_gates_that_do_not_hold_are_named(self):
    self.save('controls/mlps')
    rows = _rows(controls.controls(self.results))
    self.assertEqual(rows['MLPs of layers 13 to 22'][1], '0.38 [0.29, 0.47]')
    self.assertEqual(rows['MLPs of layers 13 to 22'][-1], 'no: retained')
    self.assertNotIn('quickstart', rows)

  def test_retain_terms_beside_the_quickstart(self):
    run = self.save('quickstart')
    self.assertEqual(controls.retain_only(self.results), cells.NOTHING)
    self.save('retain_only', relation='capital')
    rows = _rows(controls.retain_only(self.results))
    self.assertEqual(rows['held-out facts, fp'][:2], ['+0.052 [+0.040, +0.064]'] * 2)
    self.assertEqual(rows['held-out facts, fp'][2].split()[0], '+0.000')
    lines = _answers('capital', 0)
    for line in lines:
      line['models']['unlearned']['fp']['correct'] = line['split'] == 'retain'
    control = stored.find(self.results, 'retain_only')[0]
    with gzip.open(control.folder / 'answers.jsonl.gz', 'wt') as file:
      file.write('\n'.join(map(json.dumps, lines)))
    rows = _rows(controls.retain_only(self.results))
    right = np.mean([line['models']['unlearned']['fp']['correct']
                     for line in run.split('retain_heldout')])
    self.assertStartsWith(rows['held-out facts, fp'][2], f'{-right:+.3f} [')
    self.assertStartsWith(rows['retained facts, fp'][2], '+')

  def test_other_questions_are_refused(self):
    self.save('quickstart')
    control = self.save('retain_only')
    lines = [line for line in control.answers if line['id'] != 'retain/3/near_0']
    with gzip.open(control.folder / 'answers.jsonl.gz', 'wt') as file:
      file.write('\n'.join(map(json.dumps, lines)))
    with self.assertRaisesRegex(ValueError, 'answer different questions of'):
      controls.retain_only(self.results)

  def test_attacks(self):
    self.save('attacks')
    text = controls.attacks(self.results)
    self.assertIn(
        '| attacks | lora_3e-4 | NF4 | 0.34 [0.26, 0.42] | 0.70 [0.62, 0.78] |'
        ' 10 | 0.25 [0.16, 0.33] | 0.29 [0.20, 0.37] | 10 |', text)
    self.assertIn('| attacks | lora_3e-4, NF4, step 10 | +0.362', text)
    self.assertIn('| +0.137 |', text)


class PooledTest(StoredTestCase):

  def test_facts_of_all_relations_and_seeds(self):
    for relation in ('author', 'currency'):
      for seed in (0, 1):
        self.save(f'test/{relation}', seed, relation)
    self.save('test/author', 2, 'author')
    text = pooled.test(self.results)
    self.assertIn('Pooled over authors, currencies; seeds 0, 1.', text)
    rows = _rows(text)
    self.assertEqual(rows['unseen choices'][:2], ['60', '240'])
    self.assertEqual(rows['accuracy drop on held-out facts, fp'][:2],
                     ['30', '120'])  # Facts that both relations keep.
    self.assertEqual(rows['authors'][0], '3')
    values, shares = [], []
    for seed in (0, 1):
      lines = _answers('author', seed) + _answers('currency', seed)
      lines = [line for line in lines if line['split'] == 'forget_unseen']
      asked = stored.columns(lines, 'fp')
      values.append(forgetting.known_share(
          *asked.right.T, asked.ignorance, asked.facts, asked.forms).value)
      shares.append(asked.right[:, 1].mean())
    known, deviation = rows['unseen choices'][6].split(', deviation ')
    self.assertStartsWith(known, f'{np.mean(values):.2f} [')
    self.assertEqual(deviation, f'{np.std(values, ddof=1):.2f}')
    self.assertEqual(rows['unseen choices'][4], f'{np.mean(shares):.2f}')


class CommandTest(StoredTestCase):

  def test_prints_the_named_tables(self):
    with contextlib.redirect_stdout(io.StringIO()) as out, mock.patch.object(
        stored, 'RESULTS', self.results):
      self.assertEqual(command.main(['test', 'premise']), 0)
    self.assertEqual(out.getvalue(), (
        f'test\n\n{cells.NOTHING}\n\npremise\n\n{cells.NOTHING}\n\n'))

  def test_writes_the_named_tables(self):
    for name in ('README.md', 'experiments/RESULTS.md'):
      path = self.results / name
      path.parent.mkdir(exist_ok=True)
      path.write_text('<!-- table: test -->\nold\n<!-- end -->\n'
                      '<!-- table: first -->\nold\n<!-- end -->\n')
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(
        pages, 'ROOT', self.results), mock.patch.object(
            stored, 'RESULTS', self.results):
      self.assertEqual(command.main(['--write', 'test']), 0)
    for name in ('README.md', 'experiments/RESULTS.md'):
      self.assertEqual(
          pages.blocks((self.results / name).read_text()),
          {'test': cells.NOTHING, 'first': 'old'})

  def test_an_unknown_table_is_refused(self):
    with contextlib.redirect_stderr(io.StringIO()) as err:
      self.assertEqual(command.main(['other']), 2)
    self.assertIn('There is no table other; wanted some of', err.getvalue())


if __name__ == '__main__':
  absltest.main()
