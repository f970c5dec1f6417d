"""Storing a run, and reading it."""

import contextlib
import copy
import io
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.tables import __main__ as command
from experiments.tables import rejudge
from experiments.tables import stored
from mansu_jax.runtime import environment
from tests.report import records
from tests.tables import runs


class StoreTest(runs.TestCase):

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

  def test_a_run_that_attributes_has_no_answers(self):
    run = self._workdir(lambda r: r['config'].update(mode='attribute'))
    for name in ('answers', 'generations'):
      (run / f'{name}.jsonl').unlink()
    stored.store(run, self.results / 'dest')
    self.assertEqual(
        [path.name for path in (self.results / 'dest').iterdir()],
        ['record.json'])

  def test_by_the_command(self):
    run, dest = self._workdir(), self.results / 'new' / 's0'
    self.assertEqual(command.main(['store', str(run), str(dest)]), 0)
    self.assertTrue((dest / 'record.json').is_file())
    with contextlib.redirect_stderr(io.StringIO()) as err:
      self.assertEqual(command.main(['store', str(dest), str(run)]), 2)
    self.assertIn('There is no answers.jsonl', err.getvalue())


class RejudgeTest(runs.TestCase):

  def _save(self):
    def change(record):
      record['config']['quant_schemes'] = ['nf4']
      record['structure'] = {'reason': 'no questions'}
    return self.save('a', change=change)

  def test_conclusions_are_replaced(self):
    run = self._save()
    before, code = run.record, {'commit': '7654321'}
    with mock.patch.object(environment, 'describe', return_value=code):
      self.assertEqual(command.main(['rejudge', str(run.folder)]), 0)
    after = stored.Run(run.folder).record
    self.assertEqual(after['environment'], {
        'commit': '7654321', 'earlier': [before['environment']]})
    for name in ('config', 'accuracy', 'circuit'):
      self.assertEqual(after[name], before[name])
    lines = run.split('forget_unseen')
    found = after['forgetting']['choice_unseen']
    self.assertEqual(
        found['unlearned']['nf4']['value'],
        stored.right(lines, 'unlearned', 'nf4').mean())
    self.assertEqual(found['ignorance']['base']['nf4'], np.mean(
        [line['models']['base']['nf4']['ignorance'] for line in lines]))
    self.assertEqual(set(after['properties']), set('FRQS'))
    self.assertEqual(after['properties']['R'], before['properties']['R'])
    self.assertNotEqual(after['forgetting'], before['forgetting'])

  def test_code_that_is_not_committed_is_refused(self):
    run = self._save()
    with mock.patch.object(
        environment, 'describe', return_value={'commit': '0+changes'}):
      with self.assertRaisesRegex(ValueError, 'is of commit 0.changes'):
        rejudge.rejudge([run.folder])
    self.assertEqual(stored.Run(run.folder).record, run.record)
    with self.assertRaisesRegex(ValueError, 'There is no record.json'):
      rejudge.rejudge([run.folder / 'none'])


class RunTest(runs.TestCase):

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


if __name__ == '__main__':
  absltest.main()
