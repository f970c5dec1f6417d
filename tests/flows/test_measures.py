"""One run of the tiny job that reads, lets write, transplants and attacks."""

import collections
import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from experiments.tables import rejudge
from experiments.tables import stored
from mansu_jax.stages.judge import attacks
from mansu_jax.stages.judge import hidden_share
from mansu_jax.stages.judge import recall
from tests import runs
from tests import tiny_job
from tests.models import tiny

_READINGS = ('choice', 'choice_unseen', 'generation', 'generation_few_shot')
_MODELS, _PRECISIONS = ('base', 'unlearned'), ('fp', 'nf4')


@pytest.mark.slow
class MeasuresTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tiny.class_dir(cls)
    cls.flags = tiny_job.make(cls.folder / 'job', measures=True)
    cls.root = cls.folder / 'run'
    runs.run(cls.root, *cls.flags)
    cls.record = json.loads((cls.root / 'record.json').read_text())

  def test_readings_of_forgetting(self):
    found = self.record['forgetting']
    self.assertEqual(tuple(found), _READINGS)
    for reading, entry in found.items():
      for model in _MODELS:
        for precision in _PRECISIONS:
          got = entry[model][precision]
          self.assertBetween(got['value'], *got['interval'])
      for model in _MODELS:
        for guessed in entry['ignorance'][model].values():
          self.assertBetween(
              guessed, 0, 0.5 if reading != 'choice_unseen' else 1)
      self.assertGreater(entry['base']['fp']['value'], 0.9, reading)
    for reading in ('generation', 'generation_few_shot'):
      self.assertEqual(found[reading]['base']['fp']['value'], 1)
    # The model never saw the unseen choices, so it prefers any answer to them.
    self.assertEqual(found['choice_unseen']['ignorance']['base']['fp'], 1)
    self.assertIsNone(found['choice_unseen']['known']['fp']['value'])
    for reading in ('choice', 'generation'):
      self.assertLess(found[reading]['known']['fp']['value'], 0.8)
    judged = self.record['properties']['F']
    self.assertEqual(  # Both kinds of generation are judged as one reading.
        tuple(judged['by_reading']), ('choice', 'choice_unseen', 'generation'))
    self.assertEqual(judged['value'], min(
        found['value'] for by_precision in judged['by_reading'].values()
        for found in by_precision.values() if found['value'] is not None))

  def test_generated_answers_add_up_to_the_readings(self):
    right = collections.defaultdict(list)
    for line in (self.root / 'generations.jsonl').read_text().splitlines():
      row = json.loads(line)
      for model, precisions in row['models'].items():
        for precision, got in precisions.items():
          right[row['reading'], model, precision].append(got['correct'])
          if got['correct']:
            self.assertIn(row['answer'], got['text'])
    self.assertLen(right, 2 * 4)
    for (reading, model, precision), answers in right.items():
      self.assertAlmostEqual(
          np.mean(answers),
          self.record['forgetting'][reading][model][precision]['value'])

  def test_hidden_share_and_attacks_judge_structure(self):
    structure, judged = (
        self.record['structure'], self.record['properties']['S'])
    self.assertEqual(judged['passed'], 'inconclusive')
    # The tiny model prefers any answer to the unseen choices.
    self.assertIn('wanted a lead of at least 0.1', structure['reason'])
    lines = [json.loads(line) for line in (
        self.root / 'hidden_share.jsonl').read_text().splitlines()]
    self.assertTrue(any(line.get('retained') for line in lines))
    for line in lines:
      if not line.get('retained'):
        self.assertEqual(line['unlearned'].keys(), set(_PRECISIONS))
        self.assertEqual(line['base_quantized'].keys(), {'nf4'})
    (attack,) = self.record['attacks'].values()
    lines = [json.loads(line) for line in (
        self.root / 'attacks.jsonl').read_text().splitlines()]
    self.assertEqual({line['side'] for line in lines}, {'forget'})
    for precision in _PRECISIONS:
      self.assertEqual([x['step'] for x in attack[precision]], [0, 2])
      for entry in attack[precision]:
        right, guessed = zip(*(
            found[precision][str(entry['step'])]
            for line in lines for found in line['attacks'].values()))
        self.assertAlmostEqual(entry['value'], np.mean(right))
        self.assertAlmostEqual(entry['guessed'], np.mean(guessed))
    self.assertEqual(
        self.record['attack_verdict']['passed'], 'inconclusive')

  def test_stored_answers_give_the_conclusions_again(self):
    with mock.patch.object(stored, 'check_storable'):
      stored.store(self.root, self.folder / 'stored')
    got = rejudge.conclusions(stored.Run(self.folder / 'stored'))
    got.pop('not_finite', None)
    self.assertContainsSubset(
        {'forgetting', 'properties', 'verdict', 'structure', 'attacks'}, got)
    self.assertEqual(got, {key: self.record[key] for key in got})

  def test_the_report_shows_them(self):
    text = (self.root / 'report.md').read_text()
    for title in ('Forgetting by reading', 'Attacks'):
      self.assertIn(f'## {title}', text)

  def test_a_stopped_run_keeps_what_it_measured(self):
    """Stopped in the attack, it neither generates nor transplants again."""
    root = self.folder / 'stopped'
    with mock.patch.object(
        attacks, '_attack', side_effect=KeyboardInterrupt):
      with self.assertRaises(KeyboardInterrupt):
        runs.run(root, *self.flags)
    kept = [p.name for p in (root / 'checkpoints').iterdir()]
    self.assertContainsSubset(
        ['hidden_share_answers', 'attacked_base', *(
            f'recall_{name}' for name in (
                'base', 'base_nf4', 'unlearned_fp', 'unlearned_nf4'))], kept)
    with (mock.patch.object(hidden_share, '_ask', None),
          mock.patch.object(recall.Recaller, '__call__', None)):
      record = runs.run(root, *self.flags)
    self.assertEqual(
        self._without_timing(runs.figures(record)),
        self._without_timing(self.record))

  def _without_timing(self, record):
    return {k: v for k, v in record.items() if k not in (
        'stages', 'config', 'environment')}


if __name__ == '__main__':
  absltest.main()
