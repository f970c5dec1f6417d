"""The order of the chain, and the reasons for it."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mansu_jax import quant
from mansu_jax import transforms

_LAYOUT = {'w': quant.BlockLayout(memory='DF', out='F', inp='D')}


def _problem(d_in=16, d_out=24, rank=4):
  rng = np.random.default_rng(0)
  retained = rng.normal(size=(rank, d_in)).astype(np.float32)
  basis = {'w': np.linalg.qr(retained.T)[0]}
  params = {'w': jnp.asarray(rng.normal(size=(d_in, d_out)), jnp.float32)}
  return retained, basis, params


def _walk(tx, params, steps=10):
  rng = np.random.default_rng(1)
  state, theta, update = tx.init(params), params, jax.jit(tx.update)
  for _ in range(steps):
    grads = {'w': jnp.asarray(rng.normal(size=params['w'].shape), jnp.float32)}
    updates, state = update(grads, state, theta)
    theta = optax.apply_updates(theta, updates)
  return theta, state


class OrderTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('adam', optax.adam), ('decay', lambda lr: optax.chain(
          optax.sgd(lr), optax.add_decayed_weights(-0.01))))
  def test_projections_belong_after_the_optimizer(self, optimizer):
    retained, basis, params = _problem()

    def seen(*steps):
      """How far the outputs for retained inputs move."""
      theta, _ = _walk(optax.chain(*steps), params)
      return np.linalg.norm(retained @ (theta['w'] - params['w']))

    project = transforms.project_off_basis(basis)
    after = seen(optimizer(0.1), project)
    before = seen(project, optimizer(0.1))
    alone = seen(optimizer(0.1))
    self.assertLess(after, 1e-4 * alone)
    self.assertGreater(before, 0.05 * alone)

  @parameterized.named_parameters(('mask', True), ('fisher', False))
  def test_coordinate_masks_commute_with_adam_but_not_with_decay(self, circuit):
    _, _, params = _problem()
    fisher = {'w': jnp.asarray(
        np.random.default_rng(2).random(params['w'].shape), jnp.float32)}
    if circuit:
      project = transforms.mask_to_circuit({'w': fisher['w'] < 0.5})
    else:
      project = transforms.project_to_null_space(fisher)
    masked = fisher['w'] >= 0.52
    for optimizer, commutes in (
        (optax.adam(0.1), True), (optax.adamw(0.1, weight_decay=0.1), False)):
      after, _ = _walk(optax.chain(optimizer, project), params)
      before, _ = _walk(optax.chain(project, optimizer), params)
      np.testing.assert_array_equal(
          after['w'][masked], params['w'][masked])
      self.assertEqual(
          bool(np.all(before['w'][masked] == params['w'][masked])), commutes)

  def test_a_floor_that_is_not_last_loses_its_invariant(self):
    _, _, params = _problem()
    floor = transforms.magnitude_floor(
        quant.code_grid(params, 'nf4', _LAYOUT))
    project = transforms.project_off_basis(_problem()[1])
    theta, _ = _walk(optax.chain(optax.sgd(0.02), floor, project), params)
    check = quant.check_edit(params, theta, 'nf4', _LAYOUT)
    self.assertGreater(check.moved_unchanged, 10)
    self.assertFalse(check.survives)


class MansuTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(3)
    _, _, self.params = _problem()
    shape = self.params['w'].shape
    self.fisher = {'w': jnp.asarray(rng.random(shape), jnp.float32)}
    self.mask = {'w': jnp.asarray(rng.random((shape[0], 1)) < 0.5)}
    self.grids = [
        quant.code_grid(self.params, name, _LAYOUT)
        for name in ('nf4', 'int8')]

  @pytest.mark.medium
  def test_equals_the_explicit_chain(self):
    parts = optax.chain(
        optax.adam(0.1), transforms.mask_to_circuit(self.mask),
        transforms.project_to_null_space(self.fisher, quantile=0.3),
        transforms.magnitude_floor(self.grids, landing='boundary'))
    whole = transforms.mansu(
        optax.adam(0.1), fisher=self.fisher, circuit_mask=self.mask,
        grids=self.grids, quantile=0.3, landing='boundary')
    want, got = (_walk(tx, self.params) for tx in (parts, whole))
    jax.tree.map(np.testing.assert_array_equal, want, got)

  def test_moves_only_weights_that_all_parts_allow(self):
    tx = transforms.mansu(
        optax.adamw(0.05, weight_decay=0.1), fisher=self.fisher,
        circuit_mask=self.mask, grids=self.grids)
    _, state = _walk(tx, self.params)
    exact = transforms.floor_params(state)
    moved = np.asarray(exact['w'] != self.params['w'])
    self.assertGreater(moved.sum(), 10)
    self.assertFalse(np.any(moved & ~np.asarray(self.mask['w'])))
    self.assertFalse(np.any(moved & (np.asarray(self.fisher['w']) > 0.6)))
    for grid in self.grids:
      sets_scale = np.asarray(grid.sets_scale(self.params)['w'])
      self.assertFalse(np.any(moved & sets_scale))
      before, after = (
          quant.fake_quantize(t, grid.scheme, _LAYOUT)['w']
          for t in (self.params, exact))
      np.testing.assert_array_equal(np.asarray(before != after), moved)

  def test_parts_may_be_left_out(self):
    tx = transforms.mansu(
        optax.sgd(1.0), fisher=None, circuit_mask=None, grids=(), mode='none')
    theta, state = _walk(tx, self.params, steps=1)
    plain, _ = _walk(optax.sgd(1.0), self.params, steps=1)
    np.testing.assert_allclose(theta['w'], plain['w'], rtol=1e-6)
    np.testing.assert_array_equal(
        transforms.floor_params(state)['w'], plain['w'])


if __name__ == '__main__':
  absltest.main()
