"""The command line makes the edit of a file, or takes it back."""

import json
from unittest import mock

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.models.io import edit_file
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests import runs
from tests.models import tiny


class ApplyTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.root = tiny.temp_dir(self)
    cfg = tiny.config()
    base = jax.tree.map(jnp.asarray, tiny.params(cfg))
    edited = jax.tree.map(lambda x: x.at[..., 0].add(0.5), base)
    for name, params in (('base', base), ('edited', edited)):
      hf_io.write(self.root / name, cfg, params, None)
    self.generation = {'do_sample': True, 'top_p': 0.9}
    (self.root / 'base' / 'generation_config.json').write_text(
        json.dumps(self.generation))
    edit_file.write(
        self.root / 'edit.safetensors', cfg, base, edited, 'float32')

  def _apply(self, base, *args):
    return runs.command(
        '--mode=apply', f'--base={self.root / base}',
        f'--edit={self.root / "edit.safetensors"}',
        f'--workdir={self.root / "out"}', *args)

  def _check_equal(self, name):
    want, got = (loading.load(path).params
                 for path in (self.root / name, self.root / 'out' / 'model'))
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_makes_the_edited_model(self):
    status, out, _ = self._apply('base')
    self.assertEqual((status, out), (
        0, f'model: {self.root / "out" / "model"}\n'))
    self._check_equal('edited')
    made = self.root / 'out' / 'model' / 'generation_config.json'
    self.assertEqual(json.loads(made.read_text()), self.generation)
    card = (made.parent / 'README.md').read_text()
    moved = edit_file.read(self.root / 'edit.safetensors').moved.values()
    count = sum(index.size for index, _ in moved)
    self.assertIn(f'moves {count:,} weights of {len(moved)} tensors', card)
    for file in ('edit.safetensors', 'base/model.safetensors'):
      self.assertIn(loading.sha256([self.root / file]), card)

  def test_takes_the_edit_back(self):
    status, _, _ = self._apply('edited', '--apply_reverse')
    self.assertEqual(status, 0)
    self._check_equal('base')

  def test_a_model_of_half_the_width_is_read_as_it_is_stored(self):
    cfg = tiny.config()
    base = jax.tree.map(jnp.asarray, tiny.params(cfg))
    for name, params in (('base', base), (
        'edited', jax.tree.map(lambda x: x.at[..., 0].add(0.5), base))):
      hf_io.write(self.root / name, cfg, params, None, export_dtype='bfloat16')
    edit_file.write(
        self.root / 'edit.safetensors', cfg, *(
            loading.load(self.root / name, jnp.bfloat16).params
            for name in ('base', 'edited')), 'bfloat16')
    with mock.patch.object(loading, 'load', wraps=loading.load) as load:
      self.assertEqual(self._apply('base')[0], 0)
    self.assertEqual(load.call_args.args[1], jnp.bfloat16)
    self._check_equal('edited')
    made, want = (
        (path / 'model.safetensors').read_bytes() for path in (
            self.root / 'out' / 'model', self.root / 'edited'))
    self.assertEqual(made, want)

  def test_a_workdir_is_checked_before_the_base_is_read(self):
    (self.root / 'out').mkdir()
    (self.root / 'out' / 'notes.txt').write_text('mine')
    with mock.patch.object(
        loading, 'load', side_effect=AssertionError('a weight is read')):
      status, _, err = self._apply('base')
      self.assertEqual(status, 2)
      self.assertRegex(err, 'out')
      status, _, err = self._apply('base', '--workdir=')
      self.assertEqual(status, 2)
      self.assertRegex(err, '--workdir')

  def test_a_model_that_was_written_is_kept(self):
    self.assertEqual(self._apply('base')[0], 0)
    self.assertEqual(self._apply('base')[0], 0)  # The same again.
    for base, message in (
        ('edited', 'holds another run'),
        ('out/model', 'is the folder that --workdir=.* writes')):
      status, _, err = self._apply(base, '--apply_reverse')
      self.assertEqual(status, 2)
      self.assertRegex(err, message)
    self._check_equal('edited')

  def test_another_base_writes_nothing(self):
    status, _, err = self._apply('edited')
    self.assertEqual(status, 2)
    self.assertRegex(err, 'mansu_jax: The tensor .* is not the one that .*')
    self.assertFalse((self.root / 'out').exists())


if __name__ == '__main__':
  absltest.main()
