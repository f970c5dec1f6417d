"""Traced `init`, injected hyperparameters, saved and restored states."""

import tempfile

from absl.testing import absltest
from absl.testing import parameterized
from flax import serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from mansu_jax import quant
from mansu_jax import transforms

_LAYOUT = {'w': quant.BlockLayout(memory='DF', out='F', inp='D'), 'b': None}


def _params():
  rng = np.random.default_rng(0)
  return {'w': jnp.asarray(rng.normal(size=(64, 20)), jnp.float32),
          'b': jnp.ones(3)}


def _parts(params):
  rng = np.random.default_rng(1)
  draw = lambda p: jnp.asarray(rng.random(p.shape), jnp.float32)
  return {
      'fisher': jax.tree.map(draw, params),
      'circuit_mask': jax.tree.map(lambda p: draw(p) < 0.7, params),
      'grids': quant.code_grid(params, 'nf4', _LAYOUT)}


def _mansu(params, **options):
  return transforms.mansu(optax.adam(0.05), **_parts(params), **options)


def _equal(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


class TracedInitTest(parameterized.TestCase):

  def test_jit_and_eval_shape(self):
    params = _params()
    tx = _mansu(params)
    eager, traced = tx.init(params), jax.jit(tx.init)(params)
    _equal(eager, traced)
    shapes = jax.eval_shape(tx.init, params)
    self.assertEqual(jax.tree.structure(shapes), jax.tree.structure(eager))
    self.assertEqual(
        [(x.shape, x.dtype) for x in jax.tree.leaves(shapes)],
        [(x.shape, x.dtype) for x in jax.tree.leaves(eager)])

  @parameterized.named_parameters(
      ('mask', {'circuit_mask': {'w': 0.5, 'b': 1}}, "1 entries at 'w'"),
      ('fisher', {'fisher': {'w': -np.ones((64, 20)), 'b': np.ones(3)}},
       'negative entries'),
      ('shape', {'fisher': {'w': np.ones(3), 'b': np.ones(3)}}, 'has shape'))
  def test_concrete_arguments_are_checked_under_tracing(self, change, message):
    params = _params()
    tx = transforms.mansu(optax.adam(0.1), **(_parts(params) | change))
    for init in (tx.init, jax.jit(tx.init)):
      with self.assertRaisesRegex(ValueError, message):
        init(params)

  def test_off_basis(self):
    params = _params()
    basis = {'w': jnp.linalg.qr(params['w'][:, :4])[0], 'b': None}
    tx = transforms.project_off_basis(basis)
    _equal(tx.init(params), jax.jit(tx.init)(params))
    skew = transforms.project_off_basis({'w': params['w'][:, :4], 'b': None})
    with self.assertRaisesRegex(ValueError, 'not orthonormal'):
      jax.jit(skew.init)(params)

  def test_tree_map_params_finds_trees_like_the_params(self):
    params = _params()
    specs = {'w': 'spec of w', 'b': 'spec of b'}
    tx = _mansu(params)
    got = optax.tree_map_params(
        tx, lambda leaf, spec: leaf if leaf is None else spec, tx.init(params),
        specs, transform_non_params=lambda leaf: 'other',
        is_leaf=lambda leaf: leaf is None)
    adam, mask, null_space, floor = (
        got[0][0], got[1], got[2], got[3])
    self.assertEqual(adam.mu, specs)
    self.assertEqual(mask.mask, {'w': 'other', 'b': 'other'})
    self.assertEqual(null_space.mask, specs)
    self.assertEqual(floor.latent, {'w': 'spec of w', 'b': None})
    self.assertEqual(floor.origin, {'w': 'spec of w', 'b': None})
    self.assertEqual(floor.shared[0]['w'].scale, 'other')


class InjectTest(parameterized.TestCase):

  def test_quantile_and_lift_step(self):
    params = _params()
    options = {'quantile': 0.4, 'mode': 'lift', 'lift_step': 2}
    plain = _mansu(params, **options)
    injected = optax.inject_hyperparams(transforms.mansu)(
        optax.adam(0.05), **_parts(params), **options)
    self.assertIn('lift_step', injected.init(params).hyperparams)
    _equal(injected.init(params).inner_state, plain.init(params))
    walks = []
    for tx in (plain, injected):
      step = jax.jit(lambda *args, tx=tx: transforms.step(tx, *args))
      theta, state = params, jax.jit(tx.init)(params)
      for i in range(3):
        theta, state = step(
            jax.tree.map(lambda p: jnp.sin(p * (i + 1)), params), state, theta)
      walks.append(theta)
    _equal(*walks)
    check = quant.check_edit(params, walks[0], 'nf4', _LAYOUT)
    self.assertTrue(check.survives, check)
    self.assertGreater(check.moved, 50)

  def test_a_schedule_may_set_the_quantile(self):
    params = _params()
    tx = optax.inject_hyperparams(transforms.project_to_null_space)(
        _parts(params)['fisher'], quantile=lambda step: 0.25 + 0 * step)
    state = tx.init(params)
    self.assertAlmostEqual(
        float(jnp.mean(state.inner_state.mask['w'])), 0.25, places=2)
    tx.update(params, state, params)

  def test_a_storage_dtype(self):
    params = _params()
    grids = quant.code_grid(
        params, 'nf4', _LAYOUT, storage_dtype=jnp.bfloat16)
    parts = _parts(params) | {'grids': grids}
    tx = optax.inject_hyperparams(transforms.mansu)(
        optax.adam(0.05), **parts, storage_dtype=jnp.bfloat16)
    theta, _ = transforms.step(tx, params, tx.init(params), params)
    check = quant.check_edit(
        params, theta, 'nf4', _LAYOUT, storage_dtype=jnp.bfloat16)
    self.assertTrue(check.survives, check)
    self.assertGreater(check.moved, 20)

  def test_refuses_a_quantile_out_of_range(self):
    params = _params()
    tx = optax.inject_hyperparams(transforms.project_to_null_space)(
        _parts(params)['fisher'], quantile=1.5)
    with self.assertRaisesRegex(ValueError, 'got 1.5'):
      tx.init(params)


class SavedStateTest(parameterized.TestCase):

  def _walked(self):
    params = _params()
    tx = optax.MultiSteps(
        _mansu(params), 1).gradient_transformation()
    _, state = transforms.step(tx, params, tx.init(params), params)
    return tx, params, state

  def test_orbax_restores_from_the_abstract_form(self):
    tx, params, state = self._walked()
    with tempfile.TemporaryDirectory() as folder:
      with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(f'{folder}/state', state)
        checkpointer.wait_until_finished()
        found = checkpointer.restore(
            f'{folder}/state', jax.eval_shape(tx.init, params))
    self.assertEqual(jax.tree.structure(found), jax.tree.structure(state))
    _equal(found, state)
    _equal(transforms.floor_params(found), transforms.floor_params(state))

  def test_flax_serialization_knows_the_states(self):
    tx, params, state = self._walked()
    data = serialization.to_bytes(state)
    found = serialization.from_bytes(tx.init(params), data)
    self.assertEqual(jax.tree.structure(found), jax.tree.structure(state))
    _equal(found, state)
    _equal(transforms.floor_params(found), transforms.floor_params(state))
    self.assertGreater(
        int(jnp.sum(state.inner_opt_state[0][0].mu['w'] != 0)), 0)


if __name__ == '__main__':
  absltest.main()
