"""Methods in one table: each cell is a run; stopped and diverged ones."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax.config import flags as flags_lib
from mansu_jax.flows import compare
from mansu_jax.flows import unlearn
from mansu_jax.report import write
from mansu_jax.runtime import preemption
from mansu_jax.unlearn import loop
from tests import runs
from tests import tiny_job
from tests.models import tiny
from tests.report import records

_NPO = """# NPO.
--method=npo
--circuit_selection=all
--unlearn_loss=npo
--edit_floor=none
--edit_projection=none
--nounlearn_quantizer_in_loop
"""


class CompareTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.temp_dir(self)
    self.root = self.folder / 'out'
    for name, text in (('mansu', '# The defaults.\n'), ('npo', _NPO)):
      (self.folder / f'{name}.flags').write_text(text)
    self.ran = []
    self.enter_context(mock.patch.object(unlearn, 'run', self._run))
    self.fail = lambda config: None

  def _run(self, config):
    """Stands for a run: leaves its flags and a record of its seed."""
    self.ran.append((config.method, config.seed))
    self.fail(config)
    root = pathlib.Path(config.workdir)
    root.mkdir(parents=True, exist_ok=True)
    (root / 'flags.txt').write_text(flags_lib.to_flagfile(config))
    record = write.as_json(records.make())
    record['config'] |= {'seed': config.seed, 'method': config.method,
                         'quant_schemes': ['nf4']}
    (root / 'record.json').write_text(json.dumps(record))
    right = lambda i: config.method == 'npo' or i % 2
    (root / 'answers.jsonl').write_text('\n'.join(json.dumps({
        'split': 'forget_far', 'id': str(i), 'fact': str(i), 'models': {
            'unlearned': {p: {'correct': bool(right(i))} for p in (
                'fp', 'nf4')}}}) for i in range(30)))

  def _flags(self, *args, methods=('mansu', 'npo')):
    paths = ','.join(str(self.folder / f'{name}.flags') for name in methods)
    return ('--mode=compare', f'--compare_flagfiles={paths}',
            f'--workdir={self.root}', '--compare_seeds=2', '--data_forget=f',
            '--data_retain=r', *args)

  def _compare(self, *args, **options):
    return compare.run(runs.parse(*self._flags(*args, **options)))

  def test_each_method_runs_with_each_seed(self):
    text = self._compare('--seed=4', '--unlearn_steps=7')
    self.assertEqual(self.ran, [
        ('mansu', 4), ('npo', 4), ('mansu', 5), ('npo', 5)])
    flags = (self.root / 'npo' / 's5' / 'flags.txt').read_text()
    for line in ('--seed=5', '--unlearn_steps=7', '--method=npo',
                 '--mode=unlearn', '--data_forget=f'):
      self.assertIn(f'{line}\n', flags)
    self.assertEqual((self.root / 'table.md').read_text(), text)
    self.assertRegex(text, r'\| npo \| \+0.500 \[.*\] \\?\* \| ')
    found = json.loads((self.root / 'differences.json').read_text())
    self.assertEqual([*found], ['npo'])
    self.assertEqual(found['npo']['forgotten, nf4']['value'], 0.5)
    self.assertEqual(found['npo']['gap, nf4']['p_adjusted'], 1)
    self.assertRegex(text, r'\| mansu \| nf4 \| 2 \|')
    self.assertRegex(text, r'\| npo \| nf4 \| 2 \|')
    rows = json.loads((self.root / 'table.json').read_text())
    self.assertEqual([(r['method'], r['seed'], r['precision']) for r in rows], [
        (method, seed, p) for seed in (4, 5) for method in ('mansu', 'npo')
        for p in ('fp', 'nf4')])
    record = json.loads(
        (self.root / 'mansu' / 's4' / 'record.json').read_text())
    self.assertEqual(
        rows[1]['accuracy']['forget']['unlearned'],
        record['accuracy']['forget']['unlearned']['nf4'])
    self.assertEqual(
        (rows[0]['workdir'], rows[0]['data'], rows[0]['collapsed']),
        ('mansu/s4', 'f', False))

  def test_finished_cells_are_read_and_methods_may_be_added(self):
    def stop(config):
      if config.seed == 1:
        raise preemption.Stopped('stop')

    self.fail = stop
    with self.assertRaises(preemption.Stopped):
      self._compare(methods=('mansu',))
    self.fail = lambda config: None
    self.ran.clear()
    self._compare()
    self.assertEqual(self.ran, [('npo', 0), ('mansu', 1), ('npo', 1)])
    self.ran.clear()
    self._compare()
    self.assertEmpty(self.ran)
    self._compare('--unlearn_save_every=3')  # Other flags: the cell decides.
    self.assertLen(self.ran, 4)

  def test_a_method_that_diverges_stops_no_other(self):
    def fail(config):
      if config.method == 'npo':
        raise loop.DivergedError('Step 3: the retain KL is 9.')

    self.fail = fail
    text = self._compare('--compare_seeds=1')
    self.assertIn('- npo, seed 0, has no row: Step 3: the retain KL', text)
    self.assertIn('| mansu |', text)
    *_, last = json.loads((self.root / 'table.json').read_text())
    self.assertEqual((last['method'], last['precision'], last['diverged']),
                     ('npo', None, 'Step 3: the retain KL is 9.'))
    text = self._compare('--compare_seeds=1', methods=('npo',))
    self.assertNotIn('|', text)

  def test_a_collapsed_model_is_said_so(self):
    def collapse(config):
      path = pathlib.Path(config.workdir) / 'record.json'
      record = json.loads(path.read_text())
      record['accuracy']['retain_heldout']['unlearned']['fp']['value'] = 0.3
      path.write_text(json.dumps(record))

    run = unlearn.run
    with mock.patch.object(
        unlearn, 'run', lambda config: (run(config), collapse(config))):
      text = self._compare('--compare_seeds=1', methods=('npo',))
    self.assertIn('- npo, seed 0, collapsed: it answers', text)

  @parameterized.named_parameters(
      ('no_methods', ('--compare_flagfiles=',), '--compare_flagfiles=.*wanted'),
      ('no_workdir', ('--workdir=',), 'wanted both'),
      ('twice', ('--compare_flagfiles=a/x.flags,b/x.flags',), 'method twice'),
      ('missing', ('--compare_flagfiles=none.flags',), 'none.flags'),
      ('no_seeds', ('--compare_seeds=0',), '--compare_seeds=0'))
  def test_refuses(self, args, message):
    with self.assertRaisesRegex(ValueError, message):
      self._compare(*args)
    self.assertEmpty(self.ran)

  @parameterized.parameters(
      ('--method=npo\n', 'contradicts'),
      ('--mode=audit\n--base=b\n', '--mode='),
      ('--unlearn_npo_beta=2\n', 'has no effect'), ('--strange=1\n', 'strange'))
  def test_refuses_flags_of_any_method_before_a_run(self, text, message):
    (self.folder / 'npo.flags').write_text(text)
    with self.assertRaisesRegex(ValueError, message):
      self._compare()
    self.assertEmpty(self.ran)


class RealTest(absltest.TestCase):

  @pytest.mark.slow
  @pytest.mark.long
  def test_two_methods_on_the_tiny_model(self):
    folder = tiny.temp_dir(self)
    flags = tiny_job.make(folder / 'job')
    (folder / 'mansu.flags').write_text('')
    (folder / 'npo.flags').write_text(_NPO + '--unlearn_kl_weight=0\n')
    status, out, _ = runs.command(
        '--mode=compare', '--compare_seeds=1', f'--workdir={folder / "out"}',
        f'--compare_flagfiles={folder}/mansu.flags,{folder}/npo.flags',
        '--unlearn_steps=10', '--eval_cad_pairs=0', '--circuit_resamples=0',
        '--unlearn_swapped_batch=0', '--nounlearn_quantized_reference',
        *(flag for flag in flags if not flag.startswith('--unlearn_steps')))
    self.assertEqual(status, 0)
    self.assertEqual(out, (folder / 'out' / 'table.md').read_text())
    for name in ('base', 'mansu', 'npo'):
      self.assertIn(f'| {name} | nf4 | 1 |', out)
    for name in ('mansu', 'npo'):
      self.assertTrue((folder / 'out' / name / 's0' / 'report.html').is_file())


if __name__ == '__main__':
  absltest.main()
