"""Exact weights of any state, in any wrapper, with one or several floors."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mansu_jax import quant
from mansu_jax import transforms

_LAYOUT = {
    'w': quant.BlockLayout(memory='DF', out='F', inp='D'),
    'v': quant.TORCH, 'b': None}


def _params(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape) * 0.02, dtype)
  return {'w': draw(64, 20), 'v': draw(20, 64), 'b': jnp.ones(3, dtype)}


def _grads(step, params):
  return jax.tree.map(
      lambda p: jnp.sin(100 * (step + 1) * p.astype(jnp.float32)), params)


def _walk(tx, params, steps=40, **extra):
  """Params and state after compiled steps, and the weights after each step."""
  step = jax.jit(lambda *args: transforms.step(tx, *args, **extra))
  theta, state, seen = params, tx.init(params), []
  for i in range(steps):
    theta, state = step(_grads(i, params), state, theta)
    seen.append(theta)
  return theta, state, seen


def _floor(params, **options):
  return transforms.magnitude_floor(
      quant.code_grid(params, 'nf4', _LAYOUT), **options)


class StepTest(parameterized.TestCase):

  @parameterized.parameters('float32', 'bfloat16')
  @pytest.mark.medium
  def test_every_step_is_exact_although_adding_is_not(self, dtype):
    params = _params(dtype)
    tx = optax.chain(optax.adam(5e-3), _floor(params))
    theta, state, seen = _walk(tx, params)
    for each in seen:
      check = quant.check_edit(params, each, 'nf4', _LAYOUT)
      self.assertTrue(check.survives, check)
    self.assertGreater(check.moved, 100)
    jax.tree.map(np.testing.assert_array_equal, theta,
                 transforms.floor_params(state, theta))
    added, update = params, jax.jit(tx.update)
    state, missed = tx.init(params), 0
    for i in range(40):
      updates, state = update(_grads(i, params), state, added)
      added = optax.apply_updates(added, updates)
      missed += quant.check_edit(seen[i], added, 'nf4', _LAYOUT).moved
    if dtype == 'float32':
      self.assertGreater(missed, 10)
    np.testing.assert_allclose(
        np.float32(added['w']), np.float32(theta['w']), rtol=0, atol=2**-27)

  def test_leaves_without_a_floor_take_ordinary_steps(self):
    params = _params()
    theta, _, _ = _walk(optax.chain(optax.sgd(0.1), _floor(params)), params)
    plain, _, _ = _walk(optax.sgd(0.1), params)
    np.testing.assert_array_equal(theta['b'], plain['b'])
    self.assertTrue(np.all(theta['b'] != params['b']))

  def test_without_a_floor_it_is_an_ordinary_step(self):
    params = {'w': jnp.ones(2)}
    theta, _ = transforms.step(
        optax.sgd(0.5), params, optax.sgd(0.5).init(params), params)
    np.testing.assert_array_equal(theta['w'], [0.5, 0.5])

  def test_theta_0_can_be_passed_instead_of_stored(self):
    params = _params()
    make = lambda **options: optax.chain(
        optax.adam(1e-3), _floor(params, **options))
    kept, state, _ = _walk(make(), params)
    given, lean, _ = _walk(make(keep_origin=False), params, origin=params)
    jax.tree.map(np.testing.assert_array_equal, kept, given)
    size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    weights = params['w'].size + params['v'].size
    self.assertEqual(size(state) - size(lean), 4 * weights)
    jax.tree.map(
        np.testing.assert_array_equal, given,
        transforms.floor_params(lean, given, origin=params))
    with self.assertRaisesRegex(ValueError, 'origin=theta_0'):
      transforms.floor_params(lean, given)
    with self.assertRaisesRegex(ValueError, 'origin=theta_0'):
      make(keep_origin=False).update(params, lean, params)

  def test_state_is_small(self):
    params = {'w': jnp.ones((256, 32))}
    layout = {'w': _LAYOUT['w']}
    state = transforms.magnitude_floor(
        quant.code_grid(params, 'nf4', layout)).init(params)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    # Origin, latent, one scale per block, and four scalars.
    self.assertEqual(size, 256 * 32 * (4 + 4 + 4 / 64) + 4 + 4 + 1)


class WrapperTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('chain', lambda make: make(1.0), 1),
      ('multi_steps', lambda make: optax.MultiSteps(make(1.0), 2), 2),
      ('inject', lambda make: optax.inject_hyperparams(make)(lr=1.0), 1),
      ('finite', lambda make: optax.apply_if_finite(make(1.0), 3), 1),
      ('nested', lambda make: optax.chain(optax.chain(make(1.0))), 1))
  def test_exact_weights_from_any_state(self, wrap, every):
    params = _params()
    make = lambda lr: optax.chain(optax.sgd(lr), _floor(params))
    tx = wrap(make)
    tx = tx.gradient_transformation() if every == 2 else tx
    theta, state, _ = _walk(tx, params, 4)
    self.assertTrue(quant.check_edit(params, theta, 'nf4', _LAYOUT).survives)
    self.assertTrue(np.any(theta['w'] != params['w']))
    is_floor = lambda n: isinstance(n, transforms.MagnitudeFloorState)
    (floor,) = filter(is_floor, jax.tree.leaves(state, is_leaf=is_floor))
    self.assertEqual(int(floor.count), 4 // every)

  @pytest.mark.medium
  def test_apply_if_finite_skips_the_step(self):
    params = _params()
    tx = optax.apply_if_finite(
        optax.chain(optax.sgd(0.1), _floor(params)), 3)
    theta, state = params, tx.init(params)
    step = jax.jit(lambda *args: transforms.step(tx, *args))
    for i in range(3):
      theta, state = step(_grads(i, params), state, theta)
    spoilt = _grads(3, params)
    spoilt['w'] = spoilt['w'].at[0, 0].set(jnp.nan)
    after, state = step(spoilt, state, theta)
    jax.tree.map(np.testing.assert_array_equal, theta, after)
    self.assertEqual(int(state.total_notfinite), 1)
    after, state = step(_grads(4, params), state, theta)
    self.assertTrue(quant.check_edit(params, after, 'nf4', _LAYOUT).survives)

  @pytest.mark.medium
  def test_apply_if_finite_around_the_floor_skips_overflows_of_optimizers(
      self):
    params = _params()
    spoil = optax.stateless(lambda u, p: jax.tree.map(lambda x: x * jnp.inf, u))
    tx = optax.chain(spoil, optax.apply_if_finite(_floor(params), 3))
    theta, state = transforms.step(
        tx, _grads(0, params), tx.init(params), params)
    self.assertEqual(int(state[1].total_notfinite), 1)
    jax.tree.map(np.testing.assert_array_equal, theta, params)
    bare = optax.chain(spoil, _floor(params))
    theta, _ = transforms.step(
        bare, _grads(0, params), bare.init(params), params)
    self.assertFalse(np.any(np.isfinite(theta['w'])))

  @parameterized.named_parameters(
      ('object', lambda tx: tx),
      ('transformation', lambda tx: tx.gradient_transformation()))
  def test_multi_steps_passes_theta_0(self, form):
    params = _params()
    tx = form(optax.MultiSteps(optax.chain(
        optax.sgd(0.1), _floor(params, keep_origin=False)), 2))
    theta, _, _ = _walk(tx, params, 4, origin=params)
    check = quant.check_edit(params, theta, 'nf4', _LAYOUT)
    self.assertTrue(check.survives, check)
    self.assertGreater(check.moved, 50)

  @parameterized.named_parameters(
      ('shape', lambda p: p | {'w': p['v']}, "origin has shape .* at 'w'"),
      ('dtype', lambda p: p | {'w': p['w'].astype(jnp.bfloat16)},
       "origin is bfloat16 at 'w', but the params are float32"))
  def test_origin_that_does_not_match_is_refused(self, change, message):
    params = _params()
    tx = _floor(params, keep_origin=False)
    with self.assertRaisesRegex(ValueError, message):
      tx.update(params, tx.init(params), params, origin=change(params))
    with self.assertRaisesRegex(ValueError, message):
      transforms.floor_params(
          tx.init(params), params, origin=change(params))


class FloorParamsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('clip', optax.clip(1e-3)), ('ema', optax.ema(0.9)),
      ('decay', optax.add_decayed_weights(0.1)))
  def test_refuses_a_transformation_after_the_floor(self, later):
    params = _params()
    tx = optax.chain(optax.sgd(0.1), _floor(params), later)
    for chain in (tx, optax.chain(tx), optax.chain(
        optax.chain(optax.sgd(0.1), _floor(params)), later)):
      with self.assertRaisesRegex(ValueError, '1 transformation.* after'):
        transforms.step(chain, params, chain.init(params), params)

  def test_refuses_a_transformation_after_one_of_several_floors(self):
    params = _params()
    only = lambda name: optax.masked(
        _floor(params), {k: k == name for k in params})
    floors = optax.chain(only('w'), only('v'))
    transforms.step(floors, params, floors.init(params), params)
    for tx in (optax.chain(only('w'), optax.clip(1e-3), only('v')),
               optax.named_chain(
                   ('floor', _floor(params)), ('clip', optax.clip(1e-3)))):
      with self.assertRaisesRegex(ValueError, 'after.*optax.partition'):
        transforms.step(tx, params, tx.init(params), params)

  def test_requires_a_floor(self):
    with self.assertRaisesRegex(ValueError, 'no magnitude floor'):
      transforms.floor_params(optax.adam(1.0).init(_params()))

  def test_refuses_two_floors_of_one_leaf(self):
    params = _params()
    state = optax.chain(_floor(params), _floor(params)).init(params)
    with self.assertRaisesRegex(ValueError, "Two .* floors cover '[vw]'"):
      transforms.floor_params(state)

  def test_leaves_without_a_floor_come_from_the_params(self):
    params = _params()
    state = _floor(params).init(params)
    self.assertIsNone(transforms.floor_params(state)['b'])
    other = params | {'b': jnp.zeros(3), 'w': jnp.zeros((64, 20))}
    got = transforms.floor_params(state, other)
    jax.tree.map(
        np.testing.assert_array_equal, got, params | {'b': other['b']})


class PartitionTest(parameterized.TestCase):
  """Full trees work for a part of the params, however the rest is hidden."""

  def _parts(self, params):
    """Mask, Fisher and grid of all params."""
    rng = np.random.default_rng(1)
    fisher = jax.tree.map(
        lambda p: jnp.asarray(rng.random(p.shape), jnp.float32), params)
    mask = jax.tree.map(
        lambda p: jnp.asarray(rng.random(p.shape) < 0.7), params)
    return {'fisher': fisher, 'circuit_mask': mask}

  def _mansu(self, params, scheme='nf4', **parts):
    return transforms.mansu(
        optax.sgd(0.1), grids=quant.code_grid(params, scheme, _LAYOUT),
        **(self._parts(params) | parts))

  def test_partition_of_two_floors(self):
    params = _params()
    tx = optax.partition(
        {'nf4': self._mansu(params), 'int4': self._mansu(params, 'int4_g32'),
         'free': optax.sgd(0.1)}, {'w': 'nf4', 'v': 'int4', 'b': 'free'})
    theta, state, _ = _walk(tx, params, 5)
    for name, scheme in (('w', 'nf4'), ('v', 'int4_g32')):
      only = {'w': None, 'v': None, 'b': None, name: _LAYOUT[name]}
      check = quant.check_edit(params, theta, scheme, only)
      self.assertTrue(check.survives, check)
      self.assertGreater(check.moved, 50)
      alone, _, _ = _walk(self._mansu(params, scheme), params, 5)
      np.testing.assert_array_equal(theta[name], alone[name])
    plain, _, _ = _walk(optax.sgd(0.1), params, 5)
    np.testing.assert_array_equal(theta['b'], plain['b'])
    jax.tree.map(np.testing.assert_array_equal,
                 transforms.floor_params(state, theta), theta)

  def test_a_group_may_have_no_leaf(self):
    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class Params:
      w: jax.Array

    params = Params(_params()['w'])
    tx = optax.partition(
        {'floor': transforms.mansu(
            optax.sgd(0.1), circuit_mask=Params(True), fisher=params,
            grids=quant.code_grid(params, 'nf4', Params(_LAYOUT['w']))),
         'free': optax.sgd(0.1)}, Params('free'))
    theta, _, _ = _walk(tx, params, 2)
    plain, _, _ = _walk(optax.sgd(0.1), params, 2)
    np.testing.assert_array_equal(theta.w, plain.w)

  def test_partition_of_floors_without_theta_0(self):
    params = _params()
    tx = optax.partition(
        {'floor': self._mansu(params, keep_origin=False),
         'free': optax.sgd(0.1)}, {'w': 'floor', 'v': 'floor', 'b': 'free'})
    theta, _, _ = _walk(tx, params, 5, origin=params)
    check = quant.check_edit(params, theta, 'nf4', _LAYOUT)
    self.assertTrue(check.survives, check)
    self.assertGreater(check.moved, 50)

  @parameterized.named_parameters(
      ('none', None), ('masked_node', optax.MaskedNode()))
  def test_masked_takes_full_trees_and_trees_with_holes(self, hole):
    params = _params()
    kept = {'w': True, 'v': False, 'b': False}
    full = optax.masked(self._mansu(params), kept)
    cut = lambda tree: {'w': tree['w'], 'v': hole, 'b': hole}
    holes = transforms.mansu(
        optax.sgd(0.1), grids=quant.code_grid(
            cut(params), 'nf4', cut(_LAYOUT)),
        **{name: cut(tree) for name, tree in self._parts(params).items()})
    got = [_walk(tx, params, 5)[0] for tx in (full, optax.masked(holes, kept))]
    jax.tree.map(np.testing.assert_array_equal, *got)
    self.assertTrue(np.any(got[0]['w'] != params['w']))

  def test_a_whole_subtree_may_be_hidden(self):
    params = {'a': {'w': _params()['w'], 'u': _params()['w']},
              'c': {'w': _params()['v']}}
    layout = {'a': {'w': _LAYOUT['w'], 'u': _LAYOUT['w']}, 'c': {'w': None}}
    mask = jax.tree.map(lambda p: True, params)
    fisher = jax.tree.map(jnp.square, params)
    make = lambda params: transforms.mansu(
        optax.sgd(0.1), circuit_mask=mask, fisher=fisher,
        grids=quant.code_grid(params, 'nf4', layout))
    tx = optax.masked(make(params), {'a': True, 'c': False})
    theta, _, _ = _walk(tx, params, 5)
    alone, _, _ = _walk(make(params), params, 5)
    jax.tree.map(np.testing.assert_array_equal, theta['a'], alone['a'])
    hidden = {'a': params['a'], 'c': optax.MaskedNode()}
    grid = quant.code_grid(hidden, 'nf4', layout)
    self.assertTrue(np.all(
        grid.scale['a']['w'] == quant.code_grid(
            params, 'nf4', layout).scale['a']['w']))


if __name__ == '__main__':
  absltest.main()
