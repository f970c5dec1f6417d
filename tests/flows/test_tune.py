"""The search: halving, ranks, the flagfile; what is refused before a run."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import flags as flags_lib
from mansu_jax.flows import tune
from mansu_jax.flows import unlearn
from mansu_jax.report import write
from mansu_jax.unlearn import loop
from tests import runs
from tests.models import tiny
from tests.report import records

# Rate -> known, drop.
_OUTCOMES = {0.001: (0.6, 0.0), 0.002: (0.3, 0.01), 0.004: (0.1, 0.019),
             0.008: (0.05, 0.05), 0.016: (0.02, 0.9)}


class TuneTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.root = tiny.temp_dir(self) / 'out'
    self.ran = []
    self.enter_context(mock.patch.object(unlearn, 'run', self._run))

  def _run(self, config):
    rate = config.unlearn.learning_rate
    self.ran.append((rate, config.unlearn.steps))
    if rate > 0.05:
      raise loop.DivergedError('Step 3: the retain KL is 9.')
    known, drop = _OUTCOMES[rate]
    record = write.as_json(records.make())
    record['forgetting'] = {'choice': {'known': {
        'fp': {'value': known - 0.01}, 'nf4': {'value': known}}}}
    base = {'value': 0.9}
    record['accuracy']['retain_heldout'] = {
        'base': {'fp': base, 'nf4': base}, 'unlearned': {
            'fp': base, 'nf4': {'value': 0.9 - drop}}}
    if drop > 0.5:
      record['accuracy']['retain_heldout']['unlearned']['fp'] = {'value': 0.1}
    root = pathlib.Path(config.workdir)
    root.mkdir(parents=True)
    (root / 'flags.txt').write_text(flags_lib.to_flagfile(config))
    (root / 'record.json').write_text(json.dumps(record))

  def _tune(self, rates, *args):
    grid = '|'.join(map(str, rates))
    return tune.run(runs.parse(
        '--mode=tune', f'--tune_grid=unlearn_learning_rate={grid}',
        f'--workdir={self.root}', '--data_forget=f', '--data_retain=r', *args))

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
    rows = json.loads((self.root / 'table.json').read_text())
    self.assertEqual([(row['setting']['unlearn_learning_rate'], row['steps'])
                      for row in rows], [
        ('0.004', 0), ('0.002', 0), ('0.004', 20), ('0.002', 20),
        ('0.001', 20), ('0.004', 5), ('0.002', 5), ('0.001', 5), ('0.008', 5),
        ('0.016', 5), ('0.1', 5)])
    self.assertIsNone(rows[-1]['known'])
    self.ran.clear()
    self.assertEqual(self._tune([0.1, *_OUTCOMES], '--tune_rungs=5,20,0'), text)
    self.assertEqual(self.ran, [(0.1, 5)])  # It has no record.

  def test_what_costs_too_much_is_not_chosen(self):
    with self.assertRaisesRegex(ValueError, 'loses 0.050 .* --tune_drop=0.02'):
      self._tune([0.008, 0.016], '--tune_rungs=0')
    self.assertIn('collapsed', (self.root / 'table.md').read_text())
    self.assertFalse((self.root / 'tuned.flags').exists())
    self.assertIn('=0.008', self._tune(
        [0.008, 0.016], '--tune_rungs=0', '--tune_drop=0.1'))

  def test_a_larger_grid_is_drawn_from(self):
    self._tune(_OUTCOMES, '--tune_rungs=3', '--tune_trials=3',
               '--tune_drop=1.0')
    self.assertLen(set(self.ran), 3)

  @parameterized.named_parameters(
      ('no_grid', '--tune_grid=', 'wanted both'),
      ('no_values', '--tune_grid=seed=', 'no flag with values'),
      ('empty_value', '--tune_grid=seed=1||2', 'no flag with values'),
      ('unknown', '--tune_grid=strange=1', 'strange'),
      ('unread', '--tune_grid=unlearn_npo_beta=1|2', 'has no effect'),
      ('mode', '--tune_grid=mode=plan', '--mode=plan'),
      ('rungs', '--tune_rungs=0,5', 'only the last may be 0'),
      ('text', '--tune_rungs=a', 'numbers of steps'))
  def test_refuses(self, flag, message):
    with self.assertRaisesRegex(ValueError, message):
      self._tune([0.001], flag)
    self.assertEmpty(self.ran)


if __name__ == '__main__':
  absltest.main()
