"""Stages and steps are saved completely and restored bit for bit."""

import errno
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.runtime import checkpoint_io
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import preemption
from tests import full_disk

_TREE = {
    'theta': {'layers': {'mlp': {
        'gate': jnp.linspace(-1, 1, 6).reshape(2, 3),
        'mask': jnp.array([True, False]),
        'half': jnp.array([0.1, -3.0], jnp.bfloat16)}}},
    'history': {'loss': np.array([1.5, 0.25]), 'step': np.array([1, 2])},
    'empty': {}, 'number': 0.1}


def _damage(path, how):
  """Damages a file in one of the ways of `_DAMAGES`."""
  content = bytearray(path.read_bytes())
  if how == 'deleted':
    path.unlink()
    return
  if how == 'truncated':
    content = content[:len(content) // 2]
  elif how == 'flipped':
    content[len(content) // 2] ^= 1
  else:
    content = b'garbage'
  path.write_bytes(content)


_DAMAGES = ('deleted', 'truncated', 'flipped', 'garbage')


class _Case(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    made = tempfile.TemporaryDirectory()
    self.addCleanup(made.cleanup)
    self.root = pathlib.Path(made.name) / 'checkpoints'
    self.made = []

  def _get(self, result, *, resume=True, name='unlearn', **options):
    def make():
      self.made.append(name)
      return result
    with checkpoints.StageCache(self.root, resume=resume) as saved:
      return saved.get_or_compute(name, make, **options)

  def assert_same_bits(self, got, want):
    want = jax.tree.map(np.asarray, want)
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(want))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      self.assertEqual(np.asarray(a).dtype, b.dtype)
      self.assertEqual(np.asarray(a).tobytes(), b.tobytes())


class StagesTest(_Case):

  def test_computed_once_and_restored_bit_for_bit(self):
    self.assertIs(self._get(_TREE), _TREE)
    self.assert_same_bits(self._get({'theta': {}, 'history': {}}), _TREE)
    self.assertEqual(self.made, ['unlearn'])

  def test_stages_do_not_mix(self):
    with checkpoints.StageCache(self.root, resume=True) as saved:
      saved.get_or_compute('fisher', lambda: {'x': np.ones(2)})
      saved.get_or_compute('unlearn', lambda: {'x': np.zeros(2)})
    self.assert_same_bits(self._get({}, name='fisher'), {'x': np.ones(2)})
    self.assert_same_bits(self._get({}), {'x': np.zeros(2)})

  def test_what_follows_from_the_base_is_shared(self):
    made = []
    for run, resume in (('a', True), ('b', False)):
      with checkpoints.StageCache(
          self.root / run, resume=resume, shared=self.root / 'base') as saved:
        for name, of_base in (('own', False), ('said', True)):
          saved.get_or_compute_json(
              name, lambda: made.append((run, name)), of_base=of_base)
    self.assertEqual(made, [('a', 'own'), ('a', 'said'), ('b', 'own')])

  def test_shared_results_of_one_name_differ_by_their_inputs(self):
    rows = np.arange(6)
    asked = (rows,), (rows.reshape(2, 3),), (rows, rows), (rows + 1,), (rows,)
    made = []
    for run, inputs in enumerate(asked):
      with checkpoints.StageCache(
          self.root / str(run), resume=True,
          shared=self.root / 'base') as saved:
        saved.get_or_compute_json(
            'said', lambda: made.append(run), of_base=True, inputs=inputs)
    self.assertEqual(made, [0, 1, 2, 3])

  def test_without_a_shared_folder_the_base_is_the_runs_own(self):
    self._get(_TREE, of_base=True, inputs=(np.ones(1),))
    self.assertTrue((self.root / 'unlearn').exists())
    self.assertIs(self._get(_TREE, resume=False, of_base=True), _TREE)

  def test_later_changes_do_not_reach_the_save(self):
    # The save runs in the background while its arrays are in use.
    big = np.zeros(4_000_000, np.float32)
    with checkpoints.StageCache(self.root, resume=True) as saved:
      saved.get_or_compute('big', lambda: {'x': jnp.asarray(big) + 1})
      saved.get_or_compute('next', lambda: {'x': np.ones(1)})
    np.testing.assert_array_equal(self._get({}, name='big')['x'], big + 1)

  def test_json_round_trip(self):
    value = {'a': [1, 0.1, None, 'é'], 'b': {'c': True, 'n': float('inf')}}
    with checkpoints.StageCache(self.root, resume=True) as saved:
      first = saved.get_or_compute_json(
          'report', lambda: value | {'d': np.float32(0.5)})
      again = saved.get_or_compute_json('report', dict)
    self.assertEqual(first, value | {'d': 0.5})
    self.assertEqual(again, first)
    uncached = checkpoints.NoCache().get_or_compute_json('x', lambda: (1, 2))
    self.assertEqual(uncached, [1, 2])

  def test_without_resume_it_is_computed_again_and_saved(self):
    self._get({'x': np.ones(2)})
    got = self._get({'x': np.full(2, 5.0)}, resume=False)
    np.testing.assert_array_equal(got['x'], [5, 5])
    np.testing.assert_array_equal(self._get({})['x'], [5, 5])
    self.assertLen(self.made, 2)

  def test_a_failed_stage_is_not_saved_and_keeps_others(self):
    def fail():
      raise ValueError('the loss is nan')
    with self.assertRaisesRegex(ValueError, 'the loss is nan'):
      with checkpoints.StageCache(self.root, resume=True) as saved:
        saved.get_or_compute('fisher', lambda: {'x': np.ones(2)})
        saved.get_or_compute('unlearn', fail)
    self.assertEqual([p.name for p in self.root.iterdir()], ['fisher'])

  def test_an_unfinished_stage_is_removed(self):
    # As Orbax leaves it if the process is killed during a save.
    self._get({'x': np.ones(2)})
    (self.root / 'unlearn').rename(
        self.root / 'unlearn.orbax-checkpoint-tmp-7')
    got = self._get({'x': np.zeros(2)})
    np.testing.assert_array_equal(got['x'], [0, 0])
    self.assertEqual([p.name for p in self.root.iterdir()], ['unlearn'])


class DiskTest(_Case):

  def test_a_failed_save_is_an_os_error(self):
    for error in (ValueError('OUT_OF_RANGE: Error writing'), OSError('full')):
      with checkpoints.StageCache(self.root, resume=True) as saved:
        with mock.patch.object(
            saved._checkpointer, 'save', side_effect=error), (
                self.assertRaisesRegex(OSError, 'unlearn cannot be saved')):
          saved.get_or_compute('unlearn', lambda: {'x': np.ones(2)})

  @parameterized.parameters('the next save', 'the end')
  def test_a_full_disk_keeps_finished_stages(self, when):
    rng = np.random.default_rng(0)
    with self.assertRaisesRegex(OSError, 'checkpoints/big cannot be saved'):
      with checkpoints.StageCache(self.root, resume=True) as saved:
        saved.get_or_compute('small', lambda: {'x': np.ones(2)})
        saved.wait()
        with full_disk.no_room(20_000):
          saved.get_or_compute('big', lambda: {'x': rng.normal(size=50_000)})
          if when == 'the next save':
            saved.get_or_compute('next', lambda: {'x': np.ones(2)})
            self.fail('went on')
          saved.wait()
    self.assertEqual([p.name for p in self.root.iterdir()], ['small'])
    self._get({}, name='small')
    self.assertEmpty(self.made)

  def test_a_failed_save_does_not_hide_another_error(self):
    with self.assertRaisesRegex(ValueError, 'the loss'):
      with checkpoints.StageCache(self.root, resume=True) as saved:
        with full_disk.no_room(5_000):
          saved.get_or_compute(
              'big', lambda: {'x': np.random.normal(size=50_000)})
          raise ValueError('the loss is nan')

  def test_a_full_disk_keeps_finished_steps(self):
    rng = np.random.default_rng(0)
    rows = [{'loss': 1.0, 'step': 1}]
    with checkpoints.StageCache(self.root, resume=True) as saved:
      with saved.steps('steps', 1) as steps:
        steps.after(1, {'w': np.ones(2)}, rows)
      with self.assertRaisesRegex(OSError, 'steps.* cannot be saved'):
        with full_disk.no_room(20_000), saved.steps('steps', 1) as steps:
          steps.after(2, {'w': rng.normal(size=50_000)}, rows)
      with saved.steps('steps', 1) as steps:
        carry, _ = steps.restore({'w': np.zeros(2)})
    np.testing.assert_array_equal(carry['w'], [1, 1])


class DamageTest(_Case):

  @parameterized.parameters(*_DAMAGES)
  @pytest.mark.medium
  def test_damage_never_changes_results(self, how):
    """For every file of a stage; Orbax detects damage to few of them."""
    self._get(_TREE)
    whole = self.root.with_name('whole')
    self.root.rename(whole)
    files = [p for p in (whole / 'unlearn').rglob('*') if p.is_file()]
    for file in files:
      shutil.copytree(whole, self.root)
      _damage(self.root / file.relative_to(whole), how)
      with self.subTest(str(file.relative_to(whole))):
        self.made.clear()
        with self.assertLogs(level='WARNING') as logs:
          checkpoint_io.logging.warning('any')  # assertLogs needs one.
          got = self._get(_TREE)
        self.assert_same_bits(jax.tree.map(np.asarray, got), _TREE)
        warning = f'{self.root}/unlearn is damaged: it is computed again'
        self.assertEqual(
            any(warning in x for x in logs.output), bool(self.made))
        self.assertEqual(
            (self.root / 'unlearn.damaged').exists(), bool(self.made))
        self.made.clear()
        self._get({})  # It was saved again.
        self.assertEmpty(self.made)
      shutil.rmtree(self.root)

  @parameterized.parameters('flipped', 'truncated', 'deleted')
  def test_damaged_arrays_are_noticed(self, how):
    values = np.random.default_rng(0).normal(size=999)
    self._get({'x': values})
    largest = max((p for p in self.root.rglob('*') if p.is_file()),
                  key=lambda p: p.stat().st_size)
    _damage(largest, how)
    with self.assertLogs(level='WARNING') as logs:
      self._get({'x': values})
    self.assertRegex('\n'.join(logs.output),
                     'unlearn is damaged: .* computed again')
    self.assertLen(self.made, 2)

  def test_a_file_instead_of_a_folder(self):
    self.root.mkdir(parents=True)
    for _ in range(2):
      (self.root / 'unlearn').write_text('not a folder')
      self._get({'x': np.ones(1)})
      shutil.rmtree(self.root / 'unlearn')
    self.assertLen(self.made, 2)

  @parameterized.parameters(
      OSError(errno.EACCES, 'not now'), OSError(errno.EMFILE, 'not now'),
      OSError(errno.ESTALE, 'not now'), PermissionError('not now'),
      MemoryError('not now'), ValueError(  # A message of TensorStore.
          'RESOURCE_EXHAUSTED: Error opening "zarr" driver: not now'
          " [os_error_code='24'] [source locations='posix.cc']"))
  def test_a_transient_error_is_not_damage(self, error):
    self._get({'x': np.ones(1)})
    with mock.patch.object(checkpoint_io, '_restore', side_effect=error):
      with self.assertRaisesRegex(type(error), 'not now'):
        self._get({'x': np.ones(1)})
    self.assertTrue((self.root / 'unlearn').exists())

  def test_a_bad_sector_is_damage(self):
    self._get({'x': np.ones(1)})
    with mock.patch.object(checkpoint_io, '_restore', side_effect=OSError(
        errno.EIO, 'input/output error')):
      self._get({'x': np.ones(1)})
    self.assertTrue((self.root / 'unlearn.damaged').exists())


def _carry(step):
  return ({'w': jnp.array([[step, -0.5]], jnp.bfloat16), 'none': None,
           'no_rows': jnp.zeros((0, 3))},
          (jnp.int32(step), {'mu': jnp.full(3, step / 3)}))


def _history(step):
  return [{'loss': 1 / (i + 1), 'step': i + 1} for i in range(step)]


class StepsTest(_Case):

  def _steps(self, every=10, resume=True):
    saved = self.enter_context(checkpoints.StageCache(self.root, resume=resume))
    return self.enter_context(saved.steps('steps', every))

  def _save(self, *numbers):
    """Saves these steps in turn."""
    with checkpoints.StageCache(self.root, resume=True) as saved:
      for step in numbers:
        with saved.steps('steps', step) as steps:
          steps.after(step, _carry(step), _history(step))

  def _names(self):
    return {p.name for p in (self.root / 'steps').iterdir()}

  def _check_restored(self, step):
    carry, history = self._steps().restore(_carry(0))
    self.assert_same_bits(carry, _carry(step))
    self.assertEqual(history, _history(step))
    self.assertIsInstance(history[0]['step'], int)

  def test_no_step_at_first(self):
    self.assertIsNone(self._steps().restore(_carry(0)))

  def test_the_newest_is_restored_and_two_are_kept(self):
    self._save(10, 20, 30)
    self.assertEqual(self._names(), {'20', '30'})
    self._check_restored(30)

  def test_saved_when_due(self):
    with checkpoints.StageCache(self.root, resume=True) as saved:
      with saved.steps('steps', 4) as steps:
        for step in range(1, 7):
          steps.after(step, _carry(step), _history(step))
    self.assertEqual(self._names(), {'4'})

  def test_buffers_may_be_donated_at_once(self):
    with checkpoints.StageCache(self.root, resume=True) as saved:
      with saved.steps('steps', 1) as steps:
        carry = {'w': jnp.ones(2_000_000)}
        steps.after(1, carry, _history(1))
        double = jax.jit(lambda x: x * 2, donate_argnums=0)
        for _ in range(9):
          carry = {'w': double(carry['w'])}
        jax.block_until_ready(carry)
      got, _ = steps.restore(carry)
    self.assertEqual(np.unique(got['w']), [1])

  @parameterized.product(how=_DAMAGES, file=('arrays', '_METADATA'))
  def test_a_damaged_step_falls_back_to_the_one_before(self, how, file):
    self._save(10, 20)
    files = [p for p in (self.root / 'steps' / '20').rglob('*') if p.is_file()]
    by_size = sorted(files, key=lambda p: p.stat().st_size)
    _damage(by_size[-1] if file == 'arrays' else next(
        p for p in files if p.name == file), how)
    with self.assertLogs(level='WARNING') as logs:
      self._check_restored(10)
    self.assertRegex('\n'.join(logs.output), (
        r'steps/20 is damaged: going back to step 10 \(.*\); .*\.damaged'))
    self.assertEqual(self._names(), {'10', '20.damaged'})
    self._save(20, 30)
    self._check_restored(30)

  def test_it_starts_again_without_an_undamaged_step(self):
    self._save(10, 20)
    for step in (10, 20):
      shutil.rmtree(self.root / 'steps' / str(step) / 'default')
    with self.assertLogs(level='WARNING') as logs:
      self.assertIsNone(self._steps().restore(_carry(0)))
    self.assertRegex('\n'.join(logs.output), 'steps/10 .* back to step 0')

  def test_the_state_of_another_loop_is_not_used(self):
    self._save(10)
    theta, state = _carry(0)
    with self.assertLogs(level='WARNING') as logs:
      self.assertIsNone(self._steps().restore((theta, (state[0], jnp.ones(2)))))
    self.assertRegex('\n'.join(logs.output), 'arrays belong to another loop')

  def test_without_resume_they_are_removed(self):
    self._save(10)
    self.assertIsNone(self._steps(resume=False).restore(_carry(0)))
    self.assertFalse((self.root / 'steps').exists())

  def test_the_stage_of_the_loop_replaces_them(self):
    self._save(10)
    with checkpoints.StageCache(self.root, resume=True) as saved:
      saved.get_or_compute(
          'unlearn', lambda: {'x': np.ones(1)}, replaces='steps')
      self.assertTrue((self.root / 'steps').exists())  # The save may fail.
      saved.wait()
      self.assertFalse((self.root / 'steps').exists())
    self._save(10)  # As after a kill in between.
    self._get({}, replaces='steps')
    self.assertFalse((self.root / 'steps').exists())

  def test_a_signal_saves_the_step_and_stops(self):
    for every, step in ((0, 3), (10, 7)):
      with checkpoints.StageCache(self.root, resume=True) as saved:
        with self.assertRaises(preemption.Stopped), saved.steps(
            'steps', every) as steps, mock.patch.object(
                preemption._state, 'received', 'SIGTERM'):
          steps.after(step, _carry(step), _history(step))
      self._check_restored(step)


if __name__ == '__main__':
  absltest.main()
