"""Whole runs of closed forms: what they forget, keep, record, plan and tune."""

import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax.flows import compare
from mansu_jax.flows import plan
from mansu_jax.flows import tune
from mansu_jax.stages.train import closed_forms
from tests import runs
from tests import tiny_job
from tests.models import tiny

pytestmark = pytest.mark.slow

_BRIEF = (
    '--eval_generations=0', '--eval_cad_pairs=0', '--attribution_steps=1',
    '--attribution_pairs=12', '--circuit_random_circuits=1',
    '--circuit_resamples=0', '--eval_bootstrap=100')
_GROUP_MEAN = (
    '--method=group_mean', '--unlearn_closed_form_layers=0,1,2',
    '--unlearn_swapped_batch=0', '--unlearn_closed_form_retain_weight=0.01')
_LUNAR = ('--method=lunar', '--unlearn_swapped_batch=0')


def _right(record, split, model='unlearned', precision='fp'):
  return record['accuracy'][split][model][precision]['value']


class RunTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tiny.class_dir(cls)
    cls.job = [flag for flag in tiny_job.make(cls.folder / 'job')
               if not flag.startswith('--unlearn_')] + [*_BRIEF]

  def _check_files(self, root, layers):
    base = runs.tensors(self.folder / 'job' / 'model')
    got = runs.tensors(root / 'model')
    for name in base:
      moved = bool((got[name] != base[name]).any())
      self.assertEqual(moved, name in [
          f'model.layers.{layer}.mlp.down_proj.weight' for layer in layers])

  def test_group_mean_forgets_and_keeps_and_resumes(self):
    root = self.folder / 'group_mean'
    record = runs.run(root, *self.job, *_GROUP_MEAN)
    for split in 'forget', 'forget_paraphrase', 'forget_far':
      self.assertGreater(_right(record, split, 'base'), 0.95)
      self.assertLess(_right(record, split), 0.7, split)
    self.assertGreater(
        _right(record, 'retain_heldout'),
        _right(record, 'retain_heldout', 'base') - 0.1)
    self._check_files(root, (0, 1, 2))
    self.assertEqual(record['trained'], {
        'part': 'down', 'weights': 3 * 128 * 64, 'dtype': 'float32',
        'layers': [0, 1, 2]})
    history = {k: v[0] for k, v in record['history'].items()}
    self.assertEqual(history['step'], 1)
    self.assertLess(history['probe'], 0.7)
    kl = record['retain_kl']
    self.assertEqual(kl['seen_by_view'], {'fp': history['retain_kl']})
    self.assertGreater(kl['measured_nats_per_sequence'], 0)
    report = (root / 'report.html').read_text()
    self.assertIn('Forget probe', report)
    (root / 'record.json').unlink()
    with mock.patch.object(closed_forms, 'run') as again:
      resumed = runs.run(root, *self.job, *_GROUP_MEAN)
    again.assert_not_called()
    self.assertEqual(runs.figures(resumed)['accuracy'],
                     runs.figures(record)['accuracy'])

  def test_lunar_moves_forget_answers_away_and_keeps_facts(self):
    root = self.folder / 'lunar'
    record = runs.run(
        root, *self.job, *_LUNAR, '--unlearn_closed_form_scale=2.5',
        '--unlearn_closed_form_layers=0')
    self._check_files(root, (0,))
    history = {k: v[0] for k, v in record['history'].items()}
    self.assertGreater(history['forget_nll'], 1.5 * history['retain_nll'])
    self.assertGreater(history['forget_nll'], 2)  # The base knows its facts.
    self.assertGreater(_right(record, 'retain_heldout'), 0.9)

  def test_compared_and_tuned(self):
    for name, flags in (('mean', _GROUP_MEAN), ('lunar', _LUNAR)):
      (self.folder / f'{name}.flags').write_text('\n'.join(flags) + '\n')
    paths = ','.join(str(self.folder / f'{name}.flags')
                     for name in ('mean', 'lunar'))
    table = compare.run(runs.parse(
        '--mode=compare', f'--compare_flagfiles={paths}', *self.job,
        f'--workdir={self.folder / "compared"}', '--compare_seeds=1'))
    self.assertIn('| mean | nf4 |', table)
    self.assertIn('| lunar | nf4 |', table)
    root = self.folder / 'tuned'
    tune.run(runs.parse(
        '--mode=tune', f'--workdir={root}', *self.job, *_GROUP_MEAN[:3],
        '--tune_grid=unlearn_closed_form_retain_weight=10|0.1',
        '--tune_drop=0.5'))
    rows = json.loads((root / 'table.json').read_text())
    self.assertEqual([row['steps'] for row in rows], [0, 0])
    self.assertEqual(
        rows[0]['setting'], {'unlearn_closed_form_retain_weight': '0.1'})
    self.assertLess(rows[0]['known'], rows[1]['known'])
    self.assertIn('--method=group_mean\n', (root / 'tuned.flags').read_text())

  @parameterized.parameters(
      (_GROUP_MEAN, (0, 1, 2)), ((*_LUNAR, '--export_dtype=bfloat16'), (1,)))
  def test_a_plan_has_the_calls_of_the_run(self, flags, layers):
    calls = {layer: 0 for layer in layers}
    measure = closed_forms.measure

    def counted(config, layer, *args):
      calls[layer] += 1
      return measure(config, layer, *args)

    with mock.patch.object(closed_forms, 'measure', counted):
      root = self.folder / f'planned_{len(layers)}'
      record = runs.run(root, *self.job, *flags)
    self.assertEqual(record['trained']['layers'], [*layers])
    found = plan.run(runs.parse(
        *self.job, *flags, '--mode=plan', '--plan_topology=this'))
    self.assertTrue(found.fits)
    stages = {stage.name: {call.name: call.calls for call in stage.calls}
              for stage in found.stages}
    self.assertEqual(
        {layer: stages['unlearn'][f'moments of layer {layer}']
         for layer in layers}, calls)
    for layer in layers:
      self.assertEqual(stages['unlearn'][f'closed form of layer {layer}'], 1)
    self.assertEqual(stages['unlearn']['probe'], 1)
    self.assertNotIn('step at fp', stages['unlearn'])
    self.assertEqual(stages['export']['edited layers'], 1)


if __name__ == '__main__':
  absltest.main()
