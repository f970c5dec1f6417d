"""The search: halving, ranks, the flagfile; what is refused before a run."""

import json
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.flows import tune
from mansu_jax.flows import unlearn
from mansu_jax.unlearn import loop
from tests import runs
from tests import tiny_job
from tests.flows import stand_in
from tests.models import tiny

# Rate -> known, drop.
_OUTCOMES = {0.001: (0.6, 0.0), 0.002: (0.3, 0.01), 0.004: (0.1, 0.019),
             0.008: (0.05, 0.05), 0.016: (0.02, 0.9)}


class TuneTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = tiny.temp_dir(self)
    self.root = folder / 'out'
    self.job = [flag for flag in tiny_job.make(folder / 'job', train=False)
                if flag.startswith(('--model', '--data_'))]
    self.ran = []
    self.enter_context(mock.patch.object(unlearn, 'run', self._run))

  def _run(self, config, shared):
    del shared
    rate = config.unlearn.learning_rate
    self.ran.append((rate, config.unlearn.steps))
    self.assertEqual(config.eval.attacks, ())
    root = stand_in.start(config)
    if rate > 0.05:
      raise loop.DivergedError('Step 3: the retain KL is 9.')
    known, drop = _OUTCOMES[rate]

    def change(record):
      properties = record['properties']
      properties['F']['by_reading'] = {'choice': {
          'fp': {'value': 1 - known + 0.01}, 'nf4': {'value': 1 - known}}}
      properties['R']['by_precision'] = {
          'fp': {'value': 0.0}, 'nf4': {'value': drop}}
      at = lambda x: {'fp': {'value': 0.9}, 'nf4': {'value': x}}
      record['accuracy']['retain_heldout'] = {
          'base': at(0.9), 'unlearned': at(0.9 - drop)}

    stand_in.finish(root, config, change)
    (root / 'model').mkdir()

  def _tune(self, rates, *args):
    grid = '|'.join(map(str, rates))
    return tune.run(runs.parse(
        '--mode=tune', f'--tune_grid=unlearn_learning_rate={grid}',
        f'--workdir={self.root}', *self.job, *args))

  def test_the_better_half_goes_on(self):
    text = self._tune([0.1, *_OUTCOMES], '--tune_rungs=5,20,0')
    self.assertEqual(self.ran, [
        *((rate, 5) for rate in (0.1, *_OUTCOMES)), (0.004, 20), (0.002, 20),
        (0.001, 20), (0.004, 0), (0.002, 0)])
    self.assertIn('--unlearn_learning_rate=0.004\n', text)
    flags = (self.root / 'tuned.flags').read_text()
    self.assertEqual(flags, (
        '# Chosen by --mode=tune: known 0.100, drop 0.019, on\n'
        '# the questions that chose it. Judge it on others.\n'
        '--unlearn_learning_rate=0.004\n'))
    self.assertFalse((self.root / 'all_steps' / '3' / 'model').exists())
    rows = json.loads((self.root / 'table.json').read_text())
    self.assertEqual([(row['setting']['unlearn_learning_rate'], row['steps'])
                      for row in rows], [
        ('0.004', 0), ('0.002', 0), ('0.004', 20), ('0.002', 20),
        ('0.001', 20), ('0.004', 5), ('0.002', 5), ('0.001', 5), ('0.008', 5),
        ('0.016', 5), ('0.1', 5)])
    self.assertIsNone(rows[-1]['known'])
    self.ran.clear()
    self.assertEqual(self._tune([0.1, *_OUTCOMES], '--tune_rungs=5,20,0'), text)
    self.assertEmpty(self.ran)

  def test_what_costs_too_much_is_not_chosen(self):
    with self.assertRaisesRegex(ValueError, 'drop=0.02 .* best loses 0.050'):
      self._tune([0.008, 0.016], '--tune_rungs=0')
    self.assertIn('collapsed', (self.root / 'table.md').read_text())
    self.assertFalse((self.root / 'tuned.flags').exists())
    self.assertIn('=0.008', self._tune(
        [0.008, 0.016], '--tune_rungs=0', '--tune_drop=0.1'))

  def test_a_search_in_which_all_diverge_ends(self):
    with self.assertRaisesRegex(ValueError, 'The best loses inf'):
      self._tune([0.1, 0.2], '--tune_rungs=5,20')
    self.assertLen(self.ran, 2)

  def test_the_flagfile_holds_the_method_and_its_steps(self):
    self._tune([0.004], '--tune_rungs=5', '--unlearn_loss=npo',
               '--edit_floor=none', '--seed=3', '--eval_questions=9')
    self.assertEqual(
        (self.root / 'tuned.flags').read_text().splitlines()[2:], [
            '--edit_floor=none', '--unlearn_loss=npo', '--unlearn_steps=5',
            '--unlearn_learning_rate=0.004'])

  def test_a_larger_grid_is_drawn_from(self):
    drawn = set()
    for seed in range(4):
      self.ran.clear()
      self.root = self.root.with_name(f'out{seed}')
      self._tune(_OUTCOMES, '--tune_rungs=3', '--tune_trials=3',
                 '--tune_drop=1.0', f'--seed={seed}')
      self.assertLen(set(self.ran), 3)
      drawn |= set(self.ran)
    self.assertGreater(len(drawn), 3)

  @parameterized.named_parameters(
      ('no_grid', '--tune_grid=', 'wanted all three'),
      ('no_values', '--tune_grid=unlearn_x=', 'no flag with values'),
      ('empty', '--tune_grid=edit_floor=none||hold', 'no flag with values'),
      ('equal', '--tune_grid=unlearn_learning_rate=1e-4|0.0001', 'are equal'),
      ('twice', '--tune_grid=edit_floor=none,edit_floor=hold', 'flag once'),
      ('unknown', '--tune_grid=unlearn_strange=1', 'strange'),
      ('unread', '--tune_grid=unlearn_npo_beta=1|2', 'has no effect'),
      ('of_a_run', '--tune_grid=eval_questions=9', 'no flag with values'),
      ('steps', '--tune_grid=unlearn_steps=9|8', 'no flag with values'),
      ('rungs', '--tune_rungs=0,5', 'does not ascend'),
      ('down', '--tune_rungs=20,5', 'does not ascend'),
      ('text', '--tune_rungs=a', 'numbers of steps'))
  def test_refuses(self, flag, message):
    with self.assertRaisesRegex(ValueError, message):
      self._tune([0.001], flag)
    self.assertEmpty(self.ran)


if __name__ == '__main__':
  absltest.main()
