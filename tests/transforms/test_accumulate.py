"""The exact sum: values by hand, low precision, and a check of the grids."""

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import transforms


class AccumulateTest(absltest.TestCase):

  def test_by_hand_without_grids(self):
    params = {'w': jnp.array([[7.0], [2.2]]), 'b': None}
    tx = transforms.accumulate_exactly()
    _, state = tx.update(
        {'w': jnp.full((2, 1), 0.5), 'b': None}, tx.init(params), params)
    got = transforms.floor_params(state)
    np.testing.assert_allclose(got['w'], [[7.5], [2.7]])
    self.assertIsNone(got['b'])

  def test_small_updates_add_up_in_bfloat16(self):
    params = {'w': jnp.ones(3, jnp.bfloat16)}
    tx = transforms.accumulate_exactly()
    theta, state = params, tx.init(params)
    step = jax.jit(lambda *args: transforms.step(tx, *args))
    for _ in range(100):  # Each is lost if it is added to a bfloat16.
      theta, state = step({'w': jnp.full(3, 0.001)}, state, theta)
    self.assertEqual(theta['w'].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
        np.float32(theta['w']), np.float32(jnp.bfloat16(1.1)))

  def test_weights_are_rounded_to_the_storage_dtype(self):
    params = {'w': jnp.array([1.0, 0.5])}
    tx = transforms.accumulate_exactly(storage_dtype=jnp.bfloat16)
    update = {'w': jnp.array([0.001, 0.01])}
    theta, _ = transforms.step(tx, update, tx.init(params), params)
    self.assertEqual(theta['w'].dtype, jnp.float32)
    np.testing.assert_array_equal(
        theta['w'], np.float32([1, jnp.bfloat16(0.51)]))

  def test_grids_are_checked_but_do_not_matter(self):
    params = {'w': jnp.array([[7.0, 2.2]])}
    grid = quant.code_grid(params, 'int4_g128', {'w': quant.TORCH})
    update = {'w': jnp.array([[0.25, 0.25]])}
    weights = []
    for grids in ((), grid):
      tx = transforms.accumulate_exactly(grids)
      weights.append(transforms.step(
          tx, update, tx.init(params), params)[0]['w'])
    np.testing.assert_array_equal(*weights)
    with self.assertRaisesRegex(ValueError, 'does not fit'):
      transforms.accumulate_exactly(grid).init({'w': 2 * params['w']})


if __name__ == '__main__':
  absltest.main()
