"""The workdir: opened for one run, refused for any other."""

import json
import os
import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import flags as flags_lib
from mansu_jax.config import run as config_lib
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.runtime import lock
from mansu_jax.runtime import workdir
from tests import full_disk


class OpenTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.parent = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))
    self.root = self.parent / 'deep' / 'run'

  def _config(self, **changes):
    return config_lib.RunConfig(**{'workdir': str(self.root)} | changes)

  def _open(self, config, **hashes):
    return workdir.open_workdir(config, {'model': 'abc'} | hashes)

  def _finish_a_stage(self):
    (self.root / 'checkpoints' / 'attribution').mkdir(parents=True)

  def test_creates_the_folder_with_the_identity_of_the_run(self):
    root = self._open(self._config(seed=3))
    self.assertEqual(root, self.root)
    self.assertEqual(
        {p.name for p in root.iterdir()}, {'flags.txt', 'hashes.json'})
    self.assertIn('--seed=3\n', (root / 'flags.txt').read_text())

  def test_a_check_leaves_nothing_behind(self):
    workdir.check_workdir(self._config())
    self.assertEmpty(list(self.parent.iterdir()))

  def test_an_empty_folder_is_accepted(self):
    self.root.mkdir(parents=True)
    self._open(self._config())

  @parameterized.parameters(10, 200)
  def test_a_disk_that_fills_up_leaves_a_folder_that_opens(self, room):
    with self.assertRaises(OSError), full_disk.no_room(room):
      self._open(self._config(), **{f'file {i}': 'x' for i in range(9)})
    self._open(self._config())

  def test_the_same_run_is_opened_again(self):
    self._open(self._config())
    (self.root / 'record.json').write_text('{}')
    self._open(self._config())
    self.assertEqual((self.root / 'record.json').read_text(), '{}')

  def test_environments_of_stages(self):
    root = self._open(self._config())
    elsewhere, here = {'jax': '0.1'}, environment.describe()
    with mock.patch.object(environment, 'describe', lambda: elsewhere):
      workdir.record_environment(root)
    workdir.record_environment(root)  # No stage is finished yet.
    self.assertEmpty(workdir.earlier_environments(root))
    self._finish_a_stage()
    for _ in range(2):
      with self.assertLogs() as logs, mock.patch.object(
          environment, 'describe', lambda: elsewhere):
        workdir.record_environment(root)
        workdir.record_environment(root)
      self.assertLen(logs.output, 1)
      self.assertIn(f'jax {here["jax"]} then, 0.1 now', logs.output[0])
      self.assertEqual(workdir.earlier_environments(root)[-1], here)
      workdir.record_environment(root)

  def test_a_damaged_list_of_environments_starts_again(self):
    root = self._open(self._config())
    self._finish_a_stage()
    (root / 'environments.json').write_text('{')
    with self.assertLogs() as logs:
      workdir.record_environment(root)
    self.assertRegex(logs.output[0], 'environments.json is damaged')
    self.assertEmpty(workdir.earlier_environments(root))

  def test_unfinished_files_of_a_killed_process_are_removed(self):
    self._open(self._config())
    self._finish_a_stage()
    (self.root / '.model.x1y2').mkdir()
    self._open(self._config())
    self.assertFalse((self.root / '.model.x1y2').exists())

  @parameterized.parameters(
      dict(debug=True), dict(unlearn=config_lib.UnlearnConfig(save_every=0)),
      dict(mesh=config_lib.MeshConfig(tensor=2)))
  def test_flags_that_change_no_result_may_differ(self, **changes):
    self._open(self._config())
    self._finish_a_stage()
    self._open(self._config(**changes))

  def _is_consistent(self):
    """Whether `flags.txt` holds the flags of the record, if there is one."""
    record, flags = self.root / 'record.json', self.root / 'flags.txt'
    return not record.exists() or (
        json.loads(record.read_text()) == flags.read_text())

  def _finish(self, config):
    """Writes flags and record as a run does."""
    root = self._open(config)
    workdir.write_flags(config, root)
    files.write_json(root / 'record.json', flags_lib.to_flagfile(config))

  @parameterized.parameters({}, dict(debug=True))
  def test_flags_match_the_record_after_any_kill(self, **changes):
    class Killed(BaseException):
      pass

    steps = []

    def until(last):
      """Patches file operations to raise `Killed` from number `last` on."""
      def step(do):
        def counted(*args, **kwargs):
          if len(steps) == last:
            raise Killed
          steps.append(do.__name__)
          self.assertTrue(self._is_consistent())
          return do(*args, **kwargs)
        return counted
      return (mock.patch.object(os, 'replace', step(os.replace)),
              mock.patch.object(pathlib.Path, 'unlink', step(
                  pathlib.Path.unlink)))

    first, other = self._config(), self._config(**changes)
    for last in range(100):
      self._finish(first)
      steps.clear()
      replace, unlink = until(last)
      with replace, unlink:
        try:
          self._finish(other)
          break
        except Killed:
          pass
      self.assertTrue(self._is_consistent(), steps)
      self._finish(other)
      self.assertTrue(self._is_consistent())
    self.assertEqual((self.root / 'flags.txt').read_text(),
                     flags_lib.to_flagfile(other))
    self.assertGreaterEqual(last, 3)  # At least the record and the hashes.

  def test_a_record_keeps_its_flags_until_the_next(self):
    self._finish(self._config())
    before = (self.root / 'flags.txt').read_text()
    self._open(self._config(debug=True))
    self.assertEqual((self.root / 'flags.txt').read_text(), before)
    self._finish(self._config(debug=True))
    self.assertIn('--debug\n', (self.root / 'flags.txt').read_text())

  def test_locked_holds_the_lock(self):
    config = self._config()

    @workdir.locked
    def flow(given):
      self.assertIs(given, config)
      self.assertTrue((self.root / lock.NAME).exists())
      return self._open(config)

    for _ in range(2):  # Twice in a row.
      self.assertEqual(flow(config), self.root)
    self.assertFalse((self.root / lock.NAME).exists())
    with self.assertRaisesRegex(ValueError, 'No workdir'):
      workdir.locked(workdir.check_workdir)(self._config(workdir=''))

  def test_flags_are_not_written_after_losing_the_lock(self):
    config = self._config()
    with lock.held(self.root):
      root = self._open(config)
      (root / lock.NAME).unlink()
      with self.assertRaisesRegex(ValueError, 'another run took it over'):
        workdir.write_flags(config, root)

  def test_a_moved_run_is_still_the_same(self):
    self._open(self._config())
    moved = self.parent / 'moved'
    self.root.rename(moved)
    self._open(self._config(workdir=str(moved)))

  @parameterized.parameters(
      (dict(seed=1), "--seed="),
      (dict(quant_schemes=('nf4', 'fp4')), '--quant_schemes='),
      (dict(data=config_lib.DataConfig(forget=('a',))), '--data_forget=a'))
  def test_another_run_is_refused_and_kept(self, changes, flag):
    self._open(self._config())
    self._finish_a_stage()
    before = (self.root / 'flags.txt').read_text()
    with self.assertRaisesRegex(ValueError, f'holds another run.*{flag}'):
      self._open(self._config(**changes))
    self.assertEqual((self.root / 'flags.txt').read_text(), before)

  @parameterized.parameters(
      (dict(model='other'), "another version of 'model' .*abc.*other.* now"),
      ({'f.jsonl': '1'}, "another version of 'f.jsonl' .*none then, 1.* now"))
  def test_stages_of_other_bytes_are_refused_and_kept(self, changes, what):
    self._open(self._config())
    before = (self.root / 'hashes.json').read_text()
    self._finish_a_stage()
    with self.assertRaisesRegex(ValueError, f'{what}.*Give a new folder'):
      self._open(self._config(), **changes)
    self.assertEqual((self.root / 'hashes.json').read_text(), before)
    self._open(self._config())  # The same bytes are accepted.

  def test_other_data_is_refused_before_a_model_is_read(self):
    self._open(self._config(), data='1')
    self._finish_a_stage()
    workdir.check_workdir(self._config(), {'data': '1'})
    with self.assertRaisesRegex(ValueError, "another version of 'data'"):
      workdir.check_workdir(self._config(), {'data': '2'})

  def test_a_run_without_finished_stages_may_change_its_flags(self):
    """Such as a run that a later check refused."""
    self._open(self._config())
    self._open(self._config(seed=1, resume=False), model='other')
    self.assertIn('--seed=1\n', (self.root / 'flags.txt').read_text())

  def test_a_stage_that_was_being_saved_is_not_finished(self):
    self._open(self._config())
    name = 'attribution.orbax-checkpoint-tmp-7'
    (self.root / 'checkpoints' / name).mkdir(parents=True)
    self._open(self._config(seed=1))
    (self.root / 'checkpoints' / 'fisher').mkdir()
    with self.assertRaisesRegex(ValueError, 'another run'):
      self._open(self._config())

  def test_a_run_without_resume_is_refused(self):
    self._open(self._config())
    self._finish_a_stage()
    with self.assertRaisesRegex(ValueError, '--noresume'):
      self._open(self._config(resume=False))

  def test_a_new_run_without_resume_is_fine(self):
    self._open(self._config(resume=False))

  def test_other_files_are_refused_and_kept(self):
    self.root.mkdir(parents=True)
    (self.root / 'thesis.txt').write_text('mine')
    with self.assertRaisesRegex(
        ValueError, "other files, such as 'thesis.txt'"):
      self._open(self._config())
    self.assertEqual([p.name for p in self.root.iterdir()], ['thesis.txt'])

  def test_no_workdir_is_refused(self):
    with self.assertRaisesRegex(ValueError, '--workdir=DIR'):
      self._open(self._config(workdir=''))

  @parameterized.parameters('file', 'file/below')
  def test_a_path_that_cannot_be_written_is_refused(self, name):
    (self.parent / 'file').write_text('')
    with self.assertRaisesRegex(ValueError, 'cannot be written: .+ Give a'):
      self._open(self._config(workdir=str(self.parent / name)))

  def test_a_read_only_folder_is_refused(self):
    self.root.mkdir(parents=True)
    probe = pathlib.Path.touch
    self.addCleanup(setattr, pathlib.Path, 'touch', probe)
    def refuse(*args, **kwargs):  # Unlike chmod, this also affects root.
      raise PermissionError(13, 'Permission denied')
    pathlib.Path.touch = refuse
    with self.assertRaisesRegex(ValueError, 'written: Permission denied'):
      self._open(self._config())


if __name__ == '__main__':
  absltest.main()
