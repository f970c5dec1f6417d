"""Methods in one table: each cell is a run; stopped and diverged ones."""

import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
from jax.experimental.compilation_cache import compilation_cache
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.flows import cells
from mansu_jax.flows import compare
from mansu_jax.flows import unlearn
from mansu_jax.runtime import preemption
from mansu_jax.unlearn import loop
from tests import runs
from tests import tiny_job
from tests.flows import stand_in
from tests.models import tiny

_NPO = """# NPO.
--method=npo
"""


class CompareTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.temp_dir(self)
    self.root = self.folder / 'out'
    self.job = tiny_job.make(self.folder / 'job', train=False)
    self.job = [flag for flag in self.job if flag.startswith(
        ('--model', '--data_'))]
    for name, text in (('mansu', '# The defaults.\n'), ('npo', _NPO)):
      (self.folder / f'{name}.flags').write_text(text)
    self.ran, self.shared = [], []
    self.enter_context(mock.patch.object(unlearn, 'run', self._run))
    self.fail = lambda config: None
    self.kept = lambda config: 0.9

  def _run(self, config, shared):
    self.ran.append((config.method, config.seed))
    self.shared.append(shared)
    root = stand_in.start(config)
    self.fail(config)
    value = lambda x: {'fp': {'value': x}, 'nf4': {'value': x}}
    stand_in.finish(root, config, lambda record: record['accuracy'].update({
        'retain_heldout': {'base': value(0.9),
                           'unlearned': value(self.kept(config))}}))
    right = lambda i: config.method == 'npo' or i % 2
    (root / 'answers.jsonl').write_text('\n'.join(json.dumps({
        'split': 'forget_far', 'id': str(i), 'fact': str(i), 'models': {
            'unlearned': {p: {'correct': bool(right(i))} for p in (
                'fp', 'nf4')}}}) for i in range(30)))

  def _flags(self, *args, methods=('mansu', 'npo')):
    paths = ','.join(str(self.folder / f'{name}.flags') for name in methods)
    return ('--mode=compare', f'--compare_flagfiles={paths}',
            f'--workdir={self.root}', '--compare_seeds=2', *self.job, *args)

  def _compare(self, *args, **options):
    return compare.run(runs.parse(*self._flags(*args, **options)))

  def _differences(self):
    return json.loads((self.root / 'differences.json').read_text())

  def test_each_method_runs_with_each_seed(self):
    text = self._compare('--seed=4', '--unlearn_steps=7')
    self.assertEqual(self.ran, [
        ('mansu', 4), ('npo', 4), ('mansu', 5), ('npo', 5)])
    flags = (self.root / 'npo' / 's5' / 'flags.txt').read_text()
    for line in ('--seed=5', '--unlearn_steps=7', '--method=npo',
                 '--mode=unlearn'):
      self.assertIn(f'{line}\n', flags)
    self.assertEqual((self.root / 'table.md').read_text(), text)
    self.assertIn('Differences from mansu',
                  (self.root / 'report.html').read_text())
    self.assertRegex(text, r'\| npo \| 2 \| \+0.500 \[.*\] \\?\* \| ')
    found = self._differences()
    self.assertEqual([*found], ['npo'])
    self.assertEqual(found['npo']['forgotten, nf4']['by_seed'], [0.5, 0.5])
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
    self.assertEqual(rows[0]['stages'], record['stages'])
    self.assertEqual((rows[0]['workdir'], rows[0]['collapsed']),
                     ('mansu/s4', False))

  def test_cells_of_a_seed_share_what_follows_from_the_base(self):
    self._compare()
    first, second, *others = self.shared
    self.assertEqual(first.parent, self.root / 'base')
    self.assertEqual(first, second)
    self.assertNotIn(first, others)
    del self.shared[:]
    self._compare('--eval_cad_pairs=3', f'--workdir={self.folder / "other"}')
    self.assertNotEqual(self.shared[0].name, first.name)

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
    self._compare('--unlearn_save_every=3', '--debug')  # They change nothing.
    self.assertEmpty(self.ran)

  def test_changed_data_or_flags_are_refused_before_any_run(self):
    self._compare('--compare_seeds=1')
    self.ran.clear()
    (self.folder / 'npo.flags').write_text(_NPO + '--unlearn_kl_weight=3\n')
    with self.assertRaisesRegex(ValueError, 'unlearn_kl_weight'):
      self._compare('--compare_seeds=1')
    (self.folder / 'npo.flags').write_text(_NPO)
    file = next(f for f in self.job if 'data_forget' in f).partition('=')[2]
    path = pathlib.Path(file)
    path.write_text(path.read_text() + '\n')
    with self.assertRaisesRegex(ValueError, 'another version of'):
      self._compare('--compare_seeds=1')
    self.assertEmpty(self.ran)

  def test_a_method_that_diverges_stops_no_other_and_runs_once(self):
    def fail(config):
      if config.method == 'npo':
        raise loop.DivergedError('Step 3: the retain KL is 9.')

    self.fail = fail
    for _ in range(2):  # What diverged is kept, too.
      text = self._compare('--compare_seeds=1')
      self.assertEqual(self.ran, [('mansu', 0), ('npo', 0)])
      self.assertIn('- npo, seed 0, has no row: Step 3: the retain KL', text)
      self.assertIn('| mansu |', text)
      self.assertIn('No differences: mansu and the others', text)
    *_, last = json.loads((self.root / 'table.json').read_text())
    self.assertEqual((last['method'], last['precision'], last['diverged']),
                     ('npo', None, 'Step 3: the retain KL is 9.'))
    text = self._compare('--compare_seeds=1', methods=('npo',))
    self.assertNotIn('|', text)

  def test_the_reference_stays_the_first_method(self):
    def fail(config):
      if (config.method, config.seed) == ('mansu', 0):
        raise loop.DivergedError('Step 3.')

    self.fail = fail
    text = self._compare()
    self.assertIn('| less mansu | seeds |', text)
    self.assertEqual({name: len(entry['by_seed']) for name, entry in
                      self._differences()['npo'].items()},
                     dict.fromkeys(self._differences()['npo'], 1))

  def test_collapsed_models_are_not_compared(self):
    self.kept = lambda config: 0.4 if config.method == 'npo' else 0.9
    text = self._compare('--compare_seeds=1')
    self.assertIn('- npo, seed 0, collapsed: it answers', text)
    self.assertIn('| npo, collapsed | nf4 |', text)
    self.assertEqual(self._differences(), {})

  def test_a_method_may_have_another_name(self):
    text = compare.run(runs.parse(
        *self._flags()[2:], '--mode=compare', '--compare_seeds=1',
        f'--compare_flagfiles=a={self.folder}/npo.flags,'
        f'b={self.folder}/npo.flags'))
    self.assertIn('| less a | seeds |', text)
    self.assertTrue((self.root / 'b' / 's0' / 'record.json').is_file())

  def test_flags_of_all_baselines_may_be_in_the_command(self):
    (self.folder / 'npo.flags').write_text(
        '--method=npo\n--unlearn_lora_rank=2\n')
    self._compare('--circuit_selection=all', '--unlearn_weights_dtype=float32',
                  methods=('npo',))
    self.assertLen(self.ran, 2)

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
      ('--method=npo\n--edit_floor=hold\n', 'contradicts'),
      ('--mode=audit\n--base=b\n', 'sets --mode'),
      ('--eval_questions=7\n', 'sets --eval of a single run'),
      ('--quant_schemes=fp4\n', 'sets --quant_schemes'),
      ('--seed=3\n', 'sets --seed'), ('--noresume\n', 'sets --resume'),
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
    once, = (folder / 'out' / 'base').iterdir()
    own = lambda name: {path.name for path in (
        folder / 'out' / name / 's0' / 'checkpoints').iterdir()}
    shared = {path.name for path in once.iterdir()}
    self.assertContainsSubset(
        {'evaluation_base_fp', 'evaluation_base_nf4'}, shared)
    for name in ('mansu', 'npo'):
      self.assertContainsSubset(
          {'evaluation_unlearned_fp', 'evaluation_unlearned_nf4'}, own(name))
      self.assertEmpty(own(name) & shared)
      self.assertEmpty([x for x in own(name) if x.startswith('references_')])
    # The methods train on the same questions.
    self.assertLen([x for x in shared if x.startswith('references_forget')], 1)


class CompiledOnceTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.addCleanup(compilation_cache.reset_cache)
    for name, value in (('jax_compilation_cache_dir', None),
                        ('jax_enable_compilation_cache', True)):
      self.addCleanup(jax.config.update, name, getattr(jax.config, name))
      jax.config.update(name, value)
    compilation_cache.reset_cache()

  def test_a_program_is_compiled_once_and_dropped_at_the_end(self):
    hits = []
    jax.monitoring.register_event_listener(
        lambda event, **_: hits.append(event) if event.endswith(
            '/cache_hits') else None)
    program = jax.jit(lambda x: jnp.sin(x) + 1)
    x = np.ones(7, np.float32)
    program(x)  # Before: the cache was found to be off.
    for _ in range(2):  # Comparisons, each with three cells.
      hits.clear()
      with cells.compiled_once():
        folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
        for _ in range(3):
          jax.clear_caches()
          program(x)
        self.assertNotEmpty([*folder.iterdir()])
      self.assertLen(hits, 2)
      self.assertFalse(folder.exists())
      self.assertIsNone(jax.config.jax_compilation_cache_dir)
    jax.clear_caches()
    program(x)
    self.assertLen(hits, 2)

  def test_a_chosen_cache_stays(self):
    folder = str(tiny.temp_dir(self))
    jax.config.update('jax_compilation_cache_dir', folder)
    with cells.compiled_once():
      self.assertEqual(jax.config.jax_compilation_cache_dir, folder)
    self.assertEqual(jax.config.jax_compilation_cache_dir, folder)


if __name__ == '__main__':
  absltest.main()
