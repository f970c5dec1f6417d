"""Packing and unpacking the state of a loop."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.runtime import loop_state


class LoopStateTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.carry = ({'w': jnp.array([[1.5]], jnp.bfloat16), 'none': None,
                   'no_rows': jnp.zeros((0, 3))}, jnp.int32(7))
    self.history = [{'loss': 0.5, 'step': 1}, {'loss': 0.25, 'step': 2}]
    self.packed = loop_state.pack(self.carry, self.history)

  def test_round_trip(self):
    carry, history = loop_state.unpack(self.packed, self.carry)
    self.assertEqual(history, self.history)
    self.assertIsInstance(history[0]['step'], int)
    jax.tree.map(np.testing.assert_array_equal, carry, self.carry)
    self.assertEqual(carry[0]['w'].dtype, jnp.bfloat16)

  def test_empty_arrays_are_left_out_and_others_copied(self):
    leaves = self.packed['carry'].values()
    self.assertLen(leaves, 2)
    for leaf in leaves:
      self.assertTrue(leaf.flags.owndata)

  def test_the_state_of_another_loop_is_refused(self):
    with self.assertRaisesRegex(ValueError, 'belong to another loop'):
      loop_state.unpack(self.packed, (self.carry[0], jnp.ones(2)))


if __name__ == '__main__':
  absltest.main()
