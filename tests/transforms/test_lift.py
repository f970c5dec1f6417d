"""Lifting to the floor: values by hand, the invariant after it, errors."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import transforms

_LAYOUT = {'w': quant.BlockLayout(memory='DF', out='F', inp='D')}


def _random():
  rng = np.random.default_rng(0)
  return {'w': jnp.asarray(rng.normal(size=(24, 17)) * 0.02, jnp.float32)}


class HandNumbersTest(parameterized.TestCase):
  """One INT4 block of absmax 7, whose code centres are the integers."""

  def _walk(self, updates, start=2.2, **options):
    params = {'w': jnp.array([[7.0], [start]])}
    grid = quant.code_grid(params, 'int4_g128', _LAYOUT)
    tx = transforms.lift_to_floor(grid, **options)
    state, seen = tx.init(params), []
    for u in updates:
      _, state = jax.jit(tx.update)(
          {'w': jnp.full((2, 1), u, jnp.float32)}, state, params)
      seen.append(transforms.floor_params(state)['w'].ravel().tolist())
    np.testing.assert_array_equal([w[0] for w in seen], 7.0)  # The maximum.
    return np.array([w[1] for w in seen], np.float32)

  @parameterized.named_parameters(
      ('centre', 'centre', [3, 3]), ('boundary', 'boundary', [2.506, 2.506]))
  def test_small_moves_cross_at_the_lift_step(self, landing, lifted):
    got = self._walk([0.05, 0.05, 0.05], lift_step=2, landing=landing)
    np.testing.assert_allclose(got, [2.25, *lifted], rtol=1e-6)

  def test_weights_without_updates_stay(self):
    np.testing.assert_array_equal(
        self._walk([0.0], lift_step=1), np.float32([2.2]))

  def test_a_weight_at_the_end_code_returns(self):
    got = self._walk([0.1, 0.1], start=6.6, lift_step=2)
    np.testing.assert_array_equal(got, np.float32([6.7, 6.6]))


class LiftTest(parameterized.TestCase):

  @parameterized.parameters('centre', 'boundary')
  def test_jit_equals_eager_and_the_edit_survives(self, landing):
    params = _random()
    grid = quant.code_grid(params, 'nf4', _LAYOUT)
    tx = transforms.lift_to_floor(grid, lift_step=1, landing=landing)
    updates = jax.tree.map(lambda p: 0.3 * p, params)
    eager = tx.update(updates, tx.init(params), params)
    jitted = jax.jit(tx.update)(updates, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)
    theta = transforms.floor_params(eager[1])
    check = quant.check_edit(params, theta, 'nf4', _LAYOUT)
    self.assertTrue(check.survives, check)
    self.assertGreater(check.moved, 200)


class RefusalTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('landing', {'lift_step': 1, 'landing': 'edge'},
       "landing 'edge'.*centre"),
      ('lift_step', {'lift_step': 0}, 'from 1, got 0'),
      ('margin', {'lift_step': 1, 'boundary_margin': 0.5},
       'is 0.5; wanted at least 1'))
  def test_options(self, options, message):
    grid = quant.code_grid(_random(), 'nf4', _LAYOUT)
    with self.assertRaisesRegex(ValueError, message):
      transforms.lift_to_floor(grid, **options)

  def test_no_grids(self):
    with self.assertRaisesRegex(ValueError, 'no grids'):
      transforms.lift_to_floor((), lift_step=1)


if __name__ == '__main__':
  absltest.main()
