"""Stages are made once, whole, and come back as they were."""

import pathlib
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import checkpoints

_TREE = {
    'theta': {'layers': {'mlp': {
        'gate': jnp.linspace(-1, 1, 6).reshape(2, 3),
        'mask': jnp.array([True, False]),
        'half': jnp.array([0.1, -3.0], jnp.bfloat16)}}},
    'history': {'loss': np.array([1.5, 0.25]), 'step': np.array([1, 2])}}


class StagesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    made = tempfile.TemporaryDirectory()
    self.addCleanup(made.cleanup)
    self.root = pathlib.Path(made.name) / 'checkpoints'
    self.made = []

  def _get(self, result, *, resume=True, name='unlearn'):
    def make():
      self.made.append(name)
      return result
    return checkpoints.Stages(self.root, resume=resume).get(name, make)

  def test_made_once_and_restored_bit_for_bit(self):
    first = self._get(_TREE)
    second = self._get({'theta': {}, 'history': {}})
    self.assertEqual(self.made, ['unlearn'])
    for got in (first, second):
      self.assertEqual(jax.tree.structure(got), jax.tree.structure(_TREE))
      for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(_TREE)):
        self.assertEqual(a.dtype, b.dtype)
        np.testing.assert_array_equal(a, b)

  def test_stages_do_not_mix(self):
    self._get({'x': np.ones(2)}, name='fisher')
    got = self._get({'x': np.zeros(2)}, name='unlearn')
    np.testing.assert_array_equal(got['x'], np.zeros(2))
    self.assertEqual(self.made, ['fisher', 'unlearn'])

  def test_without_resume_it_is_made_again_and_kept(self):
    self._get({'x': np.ones(2)})
    got = self._get({'x': np.full(2, 5.0)}, resume=False)
    np.testing.assert_array_equal(got['x'], [5, 5])
    np.testing.assert_array_equal(self._get({})['x'], [5, 5])
    self.assertLen(self.made, 2)

  def test_a_stage_that_failed_leaves_nothing(self):
    def fail():
      raise ValueError('the loss is nan')
    with self.assertRaisesRegex(ValueError, 'the loss is nan'):
      checkpoints.Stages(self.root, resume=True).get('unlearn', fail)
    got = self._get({'x': np.ones(2)})
    np.testing.assert_array_equal(got['x'], [1, 1])

  def test_what_cannot_be_saved_is_an_error_of_the_disk(self):
    saved = checkpoints.Stages(self.root, resume=True)
    for error in (ValueError('OUT_OF_RANGE: Error writing'), OSError('full')):
      with mock.patch.object(
          saved._checkpointer, 'save', side_effect=error), (
              self.assertRaisesRegex(OSError, 'unlearn cannot be saved')):
        saved.get('unlearn', lambda: {'x': np.ones(2)})

  def test_a_half_written_stage_is_not_used(self):
    # What Orbax leaves when the process is killed while it writes.
    self._get({'x': np.ones(2)})
    (self.root / 'unlearn').rename(
        self.root / 'unlearn.orbax-checkpoint-tmp-7')
    got = self._get({'x': np.zeros(2)})
    np.testing.assert_array_equal(got['x'], [0, 0])


if __name__ == '__main__':
  absltest.main()
