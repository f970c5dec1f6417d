"""Audits on data: a run's own model gives the run's own figures."""

import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax.report import write as report
from mansu_jax.stages.judge import evaluation
from tests import runs
from tests import tiny_job

# Entries that an audit cannot measure.
_OF_TRAINING = ('history', 'retain_kl', 'swapped_prompts', 'trained')


def _without_data(flags):
  """Flags of a job without its data and the number of its pairs."""
  return [f for f in flags
          if not f.startswith(('--data_', '--attribution_pairs='))]


@pytest.mark.slow
class RunTest(parameterized.TestCase):
  """A run of the tiny job, audited."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.made = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.job = cls.made / 'job'
    flags = tiny_job.make(cls.job)  # As in test_end_to_end: compiled once.
    cls.record = report.as_json(runs.run(cls.made / 'run', *flags))
    cls.flags = runs.audit_flags(
        flags, cls.job / 'model', cls.made / 'run/model')
    cls.root = cls.made / 'audit'
    cls.audited = report.as_json(runs.audit(cls.root, *cls.flags))

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))

  def test_audit_of_a_run_gives_its_figures(self):
    ours, theirs = self.audited, self.record
    self.assertEqual(set(ours), set(theirs) | {'pair'})
    alike = set(theirs) - {
        'stages', 'config', 'data', 'quantizers', *_OF_TRAINING}
    for name in alike:
      self.assertEqual(ours[name], theirs[name], name)
    for name, found in theirs['quantizers'].items():  # An audit promises none.
      self.assertEqual(
          ours['quantizers'][name], found | {'guaranteed': False})
    for name in ('questions', 'facts', 'missing_splits'):
      self.assertEqual(ours['data'][name], theirs['data'][name])
    for name in _OF_TRAINING:
      self.assertFalse(ours[name])
    for name in ('answers.jsonl', 'circuit.json'):
      self.assertEqual((self.root / name).read_bytes(),
                       (self.made / 'run' / name).read_bytes())

  def test_workdir_has_no_model(self):
    self.assertEqual(sorted(p.name for p in self.root.iterdir()), [
        'answers.jsonl', 'checkpoints', 'circuit.json', 'environments.json',
        'flags.txt', 'hashes.json', 'plots', 'record.json', 'report.html',
        'report.md'])
    self.assertEqual(
        json.loads((self.root / 'record.json').read_text()), self.audited)
    text = (self.root / 'report.md').read_text()
    self.assertStartsWith(text, '# Audit of ')
    self.assertNotIn('| accuracy on', text)  # Of what was not measured.

  def test_the_record_knows_both_models(self):
    pair = self.audited['pair']
    self.assertEqual(pair['sha256'], runs.sha256(
        self.made / 'run/model/model.safetensors'))
    self.assertEqual(self.audited['model']['sha256'], runs.sha256(
        self.job / 'model/model.safetensors'))
    self.assertEqual(pair['compared_as'], 'float32')
    self.assertEqual(pair['tokenizers'], 'the same')
    hashes = json.loads((self.root / 'hashes.json').read_text())
    self.assertEqual((hashes['base'], hashes['model']), (
        self.audited['model']['sha256'], pair['sha256']))

  def test_audit_is_repeated_only_in_its_workdir(self):
    copy = self.folder / 'copy'
    shutil.copytree(self.root, copy)
    with self.assertRaisesRegex(ValueError, 'holds another run.*--seed=0'):
      runs.audit(copy, *self.flags, '--seed=1')
    with self.assertRaisesRegex(ValueError, 'already holds a run.*noresume'):
      runs.audit(copy, *self.flags, '--noresume')
    # Each model at each precision is restored.
    with mock.patch.object(evaluation.Evaluator, '__call__', None):
      again = runs.audit(copy, f'--flagfile={copy}/flags.txt')
    self.assertEqual(runs.figures(again), runs.figures(self.audited))

  def test_an_audit_runs_without_retain_and_heldout_data(self):
    record = report.as_json(runs.audit(self.folder / 'audit', *(
        f for f in self.flags if not f.startswith((
            '--data_retain', '--data_heldout')))))
    self.assertEqual(set(record['accuracy']), {
        'forget', 'forget_paraphrase', 'forget_far'})
    for split, found in record['accuracy'].items():
      self.assertEqual(found, self.record['accuracy'][split])
    for name in ('ptq_gap', 'ptq_gap_adjusted', 'survival', 'movement'):
      self.assertEqual(record[name], self.record[name])
    for letter in 'FQ':
      self.assertEqual(
          record['properties'][letter], self.record['properties'][letter])
    self.assertGreater(record['cad']['pairs'], 2)
    self.assertEqual(record['as_nc'], {})
    self.assertEqual(record['perplexity'], {'base': {}, 'unlearned': {}})
    for letter in 'RS':
      self.assertEqual(
          record['properties'][letter]['passed'], 'inconclusive')
    self.assertIn('no held-out questions', record['properties']['R']['reason'])
    self.assertRegex(record['unmeasured']['as_nc'], '--data_retain')

  def test_near_and_far_questions_are_enough(self):
    lines = [q for q in tiny_job.questions()['forget'] if q['use'] != 'train']
    path = self.folder / 'forget.jsonl'
    tiny_job.write_jsonl(path, lines)
    record = report.as_json(runs.audit(
        self.folder / 'audit', *_without_data(self.flags),
        f'--data_forget={path}'))
    self.assertEqual(record['ptq_gap'], self.record['ptq_gap'])
    self.assertEqual(set(record['accuracy']), {
        'forget_paraphrase', 'forget_far'})
    self.assertEqual((record['circuit'], record['cad']), ({}, {}))
    self.assertIn('no train questions', record['unmeasured']['cad'])
    self.assertFalse((self.folder / 'audit' / 'circuit.json').exists())

  def _pairs_file(self, *answers):
    """Of the first countries, with two answers by position."""
    path = self.folder / 'pairs.jsonl'
    ask = 'The capital of {} is'.format
    tiny_job.write_jsonl(path, [
        {'clean': ask(c), 'corrupt': ask(d)} | dict(zip(answers, capitals))
        for c, d, *capitals in zip(
            tiny_job.COUNTRIES[:8], tiny_job.COUNTRIES[8:16],
            tiny_job.CAPITALS[:8], tiny_job.CAPITALS[8:16])])
    return f'--attribution_pairs_file={path}'

  def test_pairs_of_a_file_are_enough_for_cad(self):
    record = report.as_json(runs.audit(
        self.folder / 'audit', *_without_data(self.flags),
        self._pairs_file('answer', 'corrupt_answer')))
    self.assertGreater(record['cad']['pairs'], 2)
    self.assertEqual((record['accuracy'], record['samples']), ({}, []))
    self.assertTrue((self.folder / 'audit' / 'circuit.json').exists())

  def test_pairs_that_the_base_does_not_answer_make_no_circuit(self):
    record = report.as_json(runs.audit(
        self.folder / 'audit', *_without_data(self.flags),
        self._pairs_file('corrupt_answer', 'answer')))
    self.assertEqual((record['circuit'], record['cad']), ({}, {}))
    self.assertIn('The model answers 0 of 8 attribution pairs',
                  record['unmeasured']['cad'])


if __name__ == '__main__':
  absltest.main()
