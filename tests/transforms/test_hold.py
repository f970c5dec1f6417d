"""Holding at the origin: values by hand, loops, wrappers and errors."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import quant
from mansu_jax import transforms
from tests.reference import floor_naive

_LAYOUT = {'w': quant.BlockLayout(memory='DF', out='F', inp='D'), 'b': None}


def _params(shape=(24, 17), dtype=jnp.float32):
  rng = np.random.default_rng(0)
  return {
      'w': jnp.asarray(rng.normal(size=shape) * 0.02, dtype),
      'b': jnp.ones(3, dtype)}


def _grids(params, *names, layout=None):
  return tuple(
      quant.code_grid(params, name, layout or _LAYOUT) for name in names)


def _run(tx, params, steps, size=0.004, seed=1):
  """Params by `apply_updates` after each step, and the last state."""
  rng = np.random.default_rng(seed)
  state, update = tx.init(params), jax.jit(tx.update)
  for _ in range(steps):
    updates = jax.tree.map(
        lambda p: jnp.asarray(size * rng.normal(size=p.shape), jnp.float32),
        params)
    updates, state = update(updates, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


class HandNumbersTest(parameterized.TestCase):
  """One INT4 block of absmax 7, whose code centres are the integers."""

  def _walk(self, update, start=2.2, **options):
    params = {'w': jnp.array([[7.0], [start]]), 'b': None}
    (grid,) = _grids(params, 'int4_g128')
    tx = transforms.hold_at_origin(grid, **options)
    state, seen = tx.init(params), []
    for u in np.atleast_1d(update):
      _, state = jax.jit(tx.update)(
          {'w': jnp.full((2, 1), u, jnp.float32), 'b': None}, state, params)
      seen.append(transforms.floor_params(state)['w'].ravel().tolist())
    np.testing.assert_array_equal([w[0] for w in seen], 7.0)  # The maximum.
    return np.array([w[1] for w in seen], np.float32)

  def test_centre(self):
    # 2.3, 2.4, 2.6 -> 3, back to 2.4 -> theta_0, down to 1.4 -> 1.
    got = self._walk([0.1, 0.1, 0.2, -0.2, -1.0])
    np.testing.assert_array_equal(got, np.float32([2.2, 2.2, 3, 2.2, 1]))

  def test_boundary(self):
    # dist is 0.3: 0.305 crosses the boundary, 0.31 exceeds 1.02 dist.
    got = self._walk([0.305, 0.005, 1.0], landing='boundary')
    np.testing.assert_allclose(got, [2.2, 2.51, 3.51], rtol=1e-6)
    self.assertEqual(got[0], np.float32(2.2))
    got = self._walk([0.305], landing='boundary', boundary_margin=1.0)
    np.testing.assert_allclose(got, [2.505], rtol=1e-6)

  def test_no_weight_moves_beyond_an_end_code(self):
    np.testing.assert_array_equal(
        self._walk([0.3, 99.0], start=6.6), np.float32([6.6, 6.6]))
    np.testing.assert_array_equal(
        self._walk([-99.0], start=6.6), np.float32([-7]))

  def test_fp4_zeros_are_one_value(self):
    params = {'w': jnp.array([[1.0], [-0.001]]), 'b': None}
    (grid,) = _grids(params, 'fp4')
    tx = transforms.hold_at_origin(grid)
    update = {'w': jnp.array([[0.0], [0.002]]), 'b': None}
    _, state = tx.update(update, tx.init(params), params)
    # Code 0 became code 8, but both decode to zero.
    np.testing.assert_array_equal(
        transforms.floor_params(state)['w'], params['w'])


class HoldTest(parameterized.TestCase):

  @parameterized.product(
      names=(('nf4',), ('fp4',), ('int4_g128', 'nf4'), ('nf4', 'int8')),
      landing=('centre', 'boundary'))
  def test_equals_loops(self, names, landing):
    params = _params((16, 16))  # Whole blocks.
    grids = _grids(params, *names)
    _, state = _run(
        transforms.hold_at_origin(grids, landing=landing), params, 3)
    got = transforms.floor_params(state)['w']
    sets_scale = [
        np.asarray(grid.sets_scale(params)['w']) for grid in grids]
    for i in np.ndindex(16, 16):
      want = floor_naive.held(
          params['w'][i], state.latent['w'][i],
          [np.float32(grid.scale['w'][i]) for grid in grids], names,
          any(frozen[i] for frozen in sets_scale),
          landing=landing, margin=1.02)
      self.assertEqual(got[i], want, msg=str(i))

  @parameterized.parameters('centre', 'boundary')
  def test_jit_equals_eager(self, landing):
    params = _params()
    tx = transforms.hold_at_origin(_grids(params, 'nf4'), landing=landing)
    updates = jax.tree.map(lambda p: 0.3 * jnp.ones_like(p) * p, params)
    eager = tx.update(updates, tx.init(params), params)
    jitted = jax.jit(tx.update)(updates, tx.init(params), params)
    jax.tree.map(np.testing.assert_array_equal, eager, jitted)

  @parameterized.parameters('float32', 'bfloat16', 'float16')
  def test_apply_updates_is_accurate_to_one_rounding(self, dtype):
    params = _params(dtype=dtype)
    theta, state = _run(
        transforms.hold_at_origin(_grids(params, 'nf4')), params, 5)
    exact = transforms.floor_params(state)
    self.assertEqual(exact['w'].dtype, jnp.dtype(dtype))
    # One float32 rounding of a sum of weights under 0.1.
    np.testing.assert_allclose(
        np.float32(theta['w']), np.float32(exact['w']), rtol=0, atol=2**-27)

  def test_updates_of_floored_leaves_are_float32(self):
    params = _params(dtype=jnp.bfloat16)
    tx = transforms.hold_at_origin(_grids(params, 'nf4'))
    updates, state = tx.update(params, tx.init(params), params)
    self.assertEqual(updates['w'].dtype, jnp.float32)
    self.assertEqual(updates['b'].dtype, jnp.bfloat16)
    self.assertEqual(state.latent['w'].dtype, jnp.float32)
    self.assertIsNone(state.latent['b'])

  def test_a_scheme_may_skip_a_leaf(self):
    params = _params()
    grids = _grids(params, 'nf4') + _grids(
        params, 'int8', layout={'w': None, 'b': None})
    _, state = _run(transforms.hold_at_origin(grids), params, 3)
    _, alone = _run(transforms.hold_at_origin(grids[0]), params, 3)
    np.testing.assert_array_equal(
        transforms.floor_params(state)['w'],
        transforms.floor_params(alone)['w'])

  def test_padded_slices_never_move(self):
    params = _params((64, 20))
    (grid,) = _grids(params, 'nf4')
    take = lambda tree: {'w': jnp.take(
        tree['w'], np.array([1, 63, 64]), axis=0, mode='fill', fill_value=0)}
    slices, gathered = take(params), grid.map_fields(take)
    theta, state = _run(
        transforms.hold_at_origin(gathered), slices, 4, size=0.1)
    exact = transforms.floor_params(state)['w']
    np.testing.assert_array_equal(exact[2], 0)
    self.assertTrue(np.all(np.isfinite(theta['w'])))
    self.assertTrue(np.any(exact[:2] != slices['w'][:2]))

  def test_slices_move_as_the_full_weights_do(self):
    params = _params((64, 20))
    (grid,) = _grids(params, 'fp4')
    rows = np.array([1, 5, 63])
    take = lambda tree: {'w': tree['w'][rows]}
    rng = np.random.default_rng(3)
    update = jnp.asarray(rng.normal(size=(64, 20)) * 0.01, jnp.float32)
    full, part = (
        transforms.hold_at_origin(g) for g in (grid, grid.map_fields(take)))
    slices = take(params)
    _, full_state = full.update(
        {'w': update, 'b': jnp.zeros(3)}, full.init(params), params)
    _, part_state = part.update(
        {'w': update[rows]}, part.init(slices), slices)
    np.testing.assert_array_equal(
        transforms.floor_params(full_state)['w'][rows],
        transforms.floor_params(part_state)['w'])

  def test_none_and_empty_leaves(self):
    params = {'w': jnp.ones((0, 4)), 'b': None}
    empty = jnp.zeros((0, 4))
    scheme = quant.get('nf4')
    grid = quant.CodeGrid(scheme=scheme, leaves={
        'w': quant.LeafGrid(quant.Shared(empty), scheme, (0, 4)), 'b': None})
    tx = transforms.hold_at_origin(grid)
    updates, state = jax.jit(tx.update)(params, tx.init(params), params)
    self.assertEqual(updates['w'].shape, (0, 4))
    self.assertIsNone(transforms.floor_params(state)['b'])

  def test_abstract_init(self):
    shapes = jax.eval_shape(_params)
    init = lambda p, g: transforms.hold_at_origin(g).init(p)
    grid = jax.eval_shape(lambda p: _grids(p, 'nf4'), shapes)
    state = jax.eval_shape(init, shapes, grid)
    self.assertEqual(state.origin, {'w': shapes['w'], 'b': None})

  def test_compiles_once_and_closes_over_no_grid(self):
    params = _params((256, 64))
    tx = transforms.hold_at_origin(_grids(params, 'nf4'))
    state, traced = tx.init(params), []

    @jax.jit
    def step(u, s, p):
      traced.append(1)
      return tx.update(u, s, p)

    for _ in range(3):
      updates, state = step(params, state, params)
      params = optax.apply_updates(params, updates)
    self.assertLen(traced, 1)
    text = step.lower(params, state, params).as_text()
    self.assertLess(len(text), 200_000)

  def test_state_and_params_may_be_donated(self):
    params = _params()
    grids = _grids(params, 'nf4')
    tx = transforms.hold_at_origin(grids)
    state = tx.init(params)
    kept = jax.tree.map(np.array, params)
    update = jax.jit(tx.update, donate_argnums=(1, 2))
    for _ in range(2):
      updates, state = update(kept, state, jax.tree.map(jnp.array, kept))
    jax.tree.map(np.testing.assert_array_equal, params, kept)
    quant.grid_view(grids[0], params)  # Neither was donated.


class WrapperTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('chain', lambda make: make(1.0), 1),
      ('multi_steps', lambda make: optax.MultiSteps(make(1.0), 2), 2),
      ('inject', lambda make: optax.inject_hyperparams(make)(lr=1.0), 1),
      ('nested', lambda make: optax.chain(optax.chain(make(1.0))), 1))
  def test_exact_weights_from_any_state(self, wrap, every):
    params = _params()
    grids = _grids(params, 'nf4')
    make = lambda lr: optax.chain(
        optax.scale(lr), transforms.hold_at_origin(grids))
    theta, state = _run(wrap(make), params, 4)
    exact = transforms.floor_params(state)
    np.testing.assert_allclose(theta['w'], exact['w'], rtol=1e-6)
    self.assertTrue(np.any(exact['w'] != params['w']))
    floors = [
        node for node in jax.tree.leaves(
            state, is_leaf=lambda n: isinstance(
                n, transforms.MagnitudeFloorState))
        if isinstance(node, transforms.MagnitudeFloorState)]
    self.assertEqual(int(floors[0].count), 4 // every)

  def test_injected_options_may_be_traced(self):
    params = _params()
    grids = _grids(params, 'nf4')
    make = lambda boundary_margin: transforms.hold_at_origin(
        grids, landing='boundary', boundary_margin=boundary_margin)
    _, state = _run(
        optax.inject_hyperparams(make)(boundary_margin=1e9), params, 2)
    np.testing.assert_array_equal(
        transforms.floor_params(state)['w'], params['w'])


class RefusalTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('landing', {'landing': 'edge'}, "landing 'edge'.*centre"),
      ('margin', {'boundary_margin': 0.5}, 'is 0.5; wanted at least 1'))
  def test_options(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      transforms.hold_at_origin(_grids(_params(), 'nf4'), **options)

  def test_no_grids(self):
    with self.assertRaisesRegex(ValueError, 'no grids'):
      transforms.hold_at_origin(())

  def test_no_params(self):
    params = _params()
    tx = transforms.hold_at_origin(_grids(params, 'nf4'))
    with self.assertRaisesRegex(ValueError, 'needs the params'):
      tx.update(params, tx.init(params))

  @parameterized.named_parameters(
      ('structure', lambda p: p | {'c': p['w']}, "no leaf 'c'"),
      ('shape', lambda p: p | {'w': p['w'][:5]}, r"\(24, 17\) at 'w'"),
      ('integers', lambda p: p | {'w': jnp.ones((24, 17), int)},
       "'w' needs floating-point"),
      ('other_weights', lambda p: p | {'w': p['w'][:, ::-1]},
       "nf4 code grid does not fit .* of 408 weights of 'w'"))
  def test_params_that_do_not_match_the_grid(self, change, message):
    params = _params()
    tx = transforms.hold_at_origin(_grids(params, 'nf4'))
    with self.assertRaisesRegex(ValueError, message):
      tx.init(change(params))

  def test_a_grid_that_was_not_gathered_with_the_params(self):
    params = _params((128, 17))
    (grid,) = _grids(params, 'nf4')
    slices = params | {'w': params['w'][:64]}
    with self.assertRaisesRegex(ValueError, r'grid has shape \(128, 17\)'):
      transforms.hold_at_origin(grid).init(slices)

  def test_other_types_than_grids(self):
    (grid,) = _grids(_params(), 'nf4')
    for wrong in ({'w': grid}, [grid.leaves['w']]):
      with self.assertRaisesRegex(ValueError, 'result of quant.code_grid'):
        transforms.hold_at_origin(wrong)

  def test_grid_of_weights_before_the_storage_cast(self):
    params = _params((256, 64))
    tx = transforms.hold_at_origin(
        _grids(params, 'nf4'), storage_dtype=jnp.bfloat16)
    with self.assertRaisesRegex(ValueError, 'storage_dtype=bfloat16'):
      tx.init(params)


if __name__ == '__main__':
  absltest.main()
