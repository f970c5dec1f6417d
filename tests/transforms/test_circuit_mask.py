"""No optimizer moves weights outside the circuit."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import transforms


class CircuitMaskTest(parameterized.TestCase):

  def test_by_hand(self):
    mask = {'w': np.array([[1], [0]]), 'b': True, 'c': 0.0}
    updates = {
        'w': jnp.ones((2, 3)), 'b': jnp.ones(2),
        'c': jnp.ones(2, jnp.bfloat16)}
    tx = transforms.mask_to_circuit(mask)
    got, _ = jax.jit(tx.update)(updates, tx.init(updates))
    np.testing.assert_array_equal(got['w'], [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(got['b'], [1, 1])
    np.testing.assert_array_equal(got['c'].astype(np.float32), [0, 0])
    self.assertEqual(got['c'].dtype, jnp.bfloat16)
    eager, _ = tx.update(updates, tx.init(updates))
    jax.tree.map(np.testing.assert_array_equal, eager, got)

  def test_weight_decay_does_not_reach_outside(self):
    params = {'w': jnp.ones(4)}
    mask = {'w': jnp.array([1, 1, 0, 0])}
    move = lambda tx: optax.apply_updates(params, tx.update(
        {'w': jnp.zeros(4)}, tx.init(params), params)[0])['w']
    after = move(optax.chain(
        optax.adamw(0.1, weight_decay=0.5), transforms.mask_to_circuit(mask)))
    np.testing.assert_array_equal(after[2:], 1)
    self.assertTrue(np.all(after[:2] < 1))
    before = move(optax.chain(
        transforms.mask_to_circuit(mask), optax.adamw(0.1, weight_decay=0.5)))
    self.assertTrue(np.all(before < 1))  # Decay moves them.

  def test_none_params_empty_leaves_and_other_pytrees(self):
    params = [jnp.ones((0, 2)), (None, jnp.ones(2))]
    tx = transforms.mask_to_circuit([True, (None, False)])
    got, _ = jax.jit(tx.update)(params, tx.init(params))
    self.assertEqual(got[0].shape, (0, 2))
    self.assertIsNone(got[1][0])
    np.testing.assert_array_equal(got[1][1], [0, 0])

  def test_none_freezes(self):
    params = {'w': jnp.ones(2), 'v': jnp.ones(2), 'u': jnp.ones(2)}
    tx = transforms.mask_to_circuit(
        {'w': None, 'v': optax.MaskedNode(), 'u': True})
    got, _ = tx.update(params, tx.init(params))
    np.testing.assert_array_equal(
        [got['w'], got['v'], got['u']], [[0, 0], [0, 0], [1, 1]])

  def test_state_may_be_donated(self):
    mask = {'w': jnp.array([True, False])}
    tx = transforms.mask_to_circuit(mask)
    update = jax.jit(tx.update, donate_argnums=1)
    update(mask, tx.init(mask))
    np.testing.assert_array_equal(mask['w'], [True, False])

  def test_abstract_init(self):
    params = {'w': jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    state = jax.eval_shape(
        lambda m, p: transforms.mask_to_circuit(m).init(p), params, params)
    self.assertEqual(state.mask['w'].dtype, bool)

  @parameterized.named_parameters(
      ('missing', {}, "no leaf 'w'"),
      ('extra', {'w': True, 'v': True}, "leaf 'v' that the params lack"),
      ('shape', {'w': np.ones(3)}, r"\(3,\) at 'w'.*broadcast"),
      ('larger', {'w': np.ones((5, 2, 4))}, r"\(5, 2, 4\) at 'w'"),
      ('scores', {'w': np.array([0.2, 1, 0, 0.7])}, "2 entries at 'w'"))
  def test_refuses(self, mask, message):
    with self.assertRaisesRegex(ValueError, message):
      transforms.mask_to_circuit(mask).init({'w': jnp.ones((2, 4))})

  def test_inside_wrappers(self):
    wrap = lambda lr: optax.chain(
        optax.sgd(lr), transforms.mask_to_circuit({'w': np.array([1, 0])}))
    params = {'w': jnp.zeros(2)}
    for tx in (
        optax.MultiSteps(wrap(1.0), 2),
        optax.inject_hyperparams(wrap)(lr=1.0)):
      state, theta = tx.init(params), params
      for _ in range(2):
        updates, state = jax.jit(tx.update)({'w': jnp.ones(2)}, state, theta)
        theta = optax.apply_updates(theta, updates)
      self.assertLess(theta['w'][0], -0.9)
      self.assertEqual(theta['w'][1], 0)


if __name__ == '__main__':
  absltest.main()
