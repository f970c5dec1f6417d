"""Projections: values by hand, invariants and errors."""

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import transforms


def _apply(tx, params, updates):
  return jax.jit(tx.update)(updates, tx.init(params))[0]


class NullSpaceTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('half', 0.5, [1, 1, 0, 0]), ('quarter', 0.25, [1, 0, 0, 0]),
      ('ninety', 0.9, [1, 1, 1, 0]), ('all', 1.0, [1, 1, 1, 1]))
  def test_by_hand(self, quantile, kept):
    fisher = {'w': jnp.array([1.0, 2.0, 3.0, 4.0])}
    tx = transforms.project_to_null_space(fisher, quantile=quantile)
    updates = {'w': jnp.array([-1.0, 2.0, -3.0, 4.0])}
    got = _apply(tx, updates, updates)
    np.testing.assert_array_equal(got['w'], updates['w'] * np.array(kept))

  def test_each_leaf_has_its_own_quantile(self):
    fisher = {'a': jnp.array([1.0, 2.0]), 'b': jnp.array([100.0, 200.0])}
    got = _apply(
        transforms.project_to_null_space(fisher), fisher,
        jax.tree.map(jnp.ones_like, fisher))
    np.testing.assert_array_equal(got['a'], [1, 0])
    np.testing.assert_array_equal(got['b'], [1, 0])

  def test_padding_does_not_move_or_enter_the_quantile(self):
    fisher = {'w': jnp.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])}
    valid = {'w': jnp.array([[True], [True], [False]])}
    tx = transforms.project_to_null_space(fisher, valid=valid)
    got = _apply(tx, fisher, {'w': jnp.ones((3, 2))})
    np.testing.assert_array_equal(got['w'], [[1, 1], [0, 0], [0, 0]])

  def test_zero_fisher_is_always_kept(self):
    # Three of four are zero, so the median is zero too.
    fisher = {'w': jnp.array([0.0, 0.0, 0.0, 5.0])}
    got = _apply(
        transforms.project_to_null_space(fisher), fisher, {'w': jnp.ones(4)})
    np.testing.assert_array_equal(got['w'], [1, 1, 1, 0])

  @parameterized.parameters(0.1, 0.5, 0.99)
  def test_a_constant_fisher_is_kept(self, quantile):
    fisher = {'w': jnp.full(4, 2.0), 'one': jnp.ones(1)}
    got = _apply(transforms.project_to_null_space(fisher, quantile=quantile),
                 fisher, jax.tree.map(jnp.ones_like, fisher))
    np.testing.assert_array_equal(got['w'], np.ones(4))
    np.testing.assert_array_equal(got['one'], [1])

  @settings(max_examples=30, deadline=None)
  @given(seed=st.integers(0, 2**32 - 1), quantile=st.floats(0.01, 1.0))
  def test_keeps_the_share_with_the_least_fisher(self, seed, quantile):
    rng = np.random.default_rng(seed)
    fisher = {'w': rng.exponential(size=(20, 10)).astype(np.float32)}
    tx = transforms.project_to_null_space(fisher, quantile=quantile)
    mask = np.asarray(tx.init(fisher).mask['w'])
    self.assertLess(abs(mask.sum() - quantile * 200), 1.5)
    if not mask.all():
      self.assertLess(fisher['w'][mask].max(), fisher['w'][~mask].min())

  def test_none_and_empty_leaves_and_dtypes(self):
    fisher = {'a': None, 'b': jnp.zeros((0, 3)), 'c': jnp.array([1.0, 2.0])}
    params = {'a': jnp.ones(2), 'b': jnp.zeros((0, 3)), 'c': jnp.ones(2)}
    updates = params | {'c': jnp.ones(2, jnp.bfloat16)}
    got = _apply(transforms.project_to_null_space(fisher), params, updates)
    np.testing.assert_array_equal(got['a'], [1, 1])
    self.assertEqual(got['b'].shape, (0, 3))
    self.assertEqual(got['c'].dtype, jnp.bfloat16)

  def test_zeroes_non_finite_updates(self):
    fisher = {'w': jnp.array([1.0, 2.0])}
    got = _apply(
        transforms.project_to_null_space(fisher), fisher,
        {'w': jnp.array([1.0, jnp.nan])})
    np.testing.assert_array_equal(got['w'], [1, 0])

  def test_abstract_init(self):
    params = {'w': jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    init = lambda f, p: transforms.project_to_null_space(f).init(p)
    state = jax.eval_shape(init, params, params)
    self.assertEqual(state.mask['w'].shape, (2, 3))

  @parameterized.parameters(-0.1, 0.0, 1.5, float('nan'))
  def test_refuses_quantiles(self, quantile):
    with self.assertRaisesRegex(ValueError, r'quantile.*wanted.*\(0, 1\]'):
      transforms.project_to_null_space({}, quantile=quantile)

  @parameterized.named_parameters(
      ('missing', {'w': np.ones(2)}, "Fisher has no leaf 'b'"),
      ('extra', {'w': np.ones(2), 'b': None, 'c': np.ones(1)}, "leaf 'c'"),
      ('shape', {'w': np.ones(3), 'b': None}, r"\(3,\) at 'w'"),
      ('nan', {'w': np.array([1, np.nan]), 'b': None}, "'w' has 1 non-finite"),
      ('negative', {'w': -np.ones(2), 'b': None}, "'w' has 2 negative"))
  def test_refuses_a_fisher(self, fisher, message):
    params = {'w': jnp.ones(2), 'b': jnp.ones(3)}
    with self.assertRaisesRegex(ValueError, message):
      transforms.project_to_null_space(fisher).init(params)

  def test_refuses_a_valid_mask(self):
    params = {'w': jnp.ones((2, 3))}
    tx = transforms.project_to_null_space(
        params, valid={'w': np.ones((2, 2), bool)})
    with self.assertRaisesRegex(ValueError, r"valid mask.*\(2, 2\) at 'w'"):
      tx.init(params)


class OffBasisTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('tall', 8, 3, 2), ('nearly_full_rank', 4, 6, 3))
  def test_retained_outputs_do_not_move(self, d_in, d_out, rank):
    rng = np.random.default_rng(0)
    retained = rng.normal(size=(rank, d_in))  # [rank, d_in]
    basis = {'w': np.linalg.qr(retained.T)[0], 'b': None}
    grads = {'w': rng.normal(size=(d_in, d_out)), 'b': np.ones(d_out)}
    got = _apply(transforms.project_off_basis(basis), grads, grads)
    np.testing.assert_allclose(retained @ got['w'], 0.0, atol=1e-5)
    np.testing.assert_array_equal(got['b'], grads['b'])
    self.assertGreater(np.linalg.norm(got['w']), 0.1)

  def test_stacked_layers(self):
    rng = np.random.default_rng(0)
    retained = rng.normal(size=(3, 2, 5))  # [L, rank, d_in]
    basis = {'w': np.linalg.qr(np.swapaxes(retained, 1, 2))[0]}
    updates = {'w': jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.bfloat16)}
    got = _apply(transforms.project_off_basis(basis), updates, updates)
    self.assertEqual(got['w'].dtype, jnp.bfloat16)
    np.testing.assert_allclose(retained @ np.float32(got['w']), 0, atol=0.1)

  @parameterized.named_parameters(
      ('rows', (3, 1), r"'w' has shape \(3, 1\).*wanted \[4, rank\]"),
      ('full_rank', (4, 4), 'rank < 4. A full-rank basis would remove'),
      ('not_orthonormal', (4, 2), 'not orthonormal'))
  def test_refuses_a_basis(self, shape, message):
    tx = transforms.project_off_basis({'w': np.ones(shape)})
    with self.assertRaisesRegex(ValueError, message):
      tx.init({'w': jnp.ones((4, 6))})

  def test_refuses_a_vector(self):
    tx = transforms.project_off_basis({'w': np.ones((4, 1)) / 2})
    with self.assertRaisesRegex(ValueError, r'parameter is \(4,\)'):
      tx.init({'w': jnp.ones(4)})


class ComponentTest(parameterized.TestCase):

  def test_nothing_is_left_along_the_direction(self):
    rng = np.random.default_rng(0)
    draw = lambda: {'a': rng.normal(size=(3, 4)).astype(np.float32),
                    'b': rng.normal(size=5).astype(np.float32), 'c': None}
    updates, direction = draw(), draw()
    got = jax.jit(transforms.remove_component)(updates, direction)
    for name in 'ab':
      u, d = updates[name], direction[name]
      self.assertAlmostEqual(float((got[name] * d).sum()), 0, places=4)
      np.testing.assert_allclose(
          got[name], u - d * (u * d).sum() / (d * d).sum(), rtol=1e-4,
          atol=1e-6)
    self.assertIsNone(got['c'])

  @parameterized.parameters(0.0, 1e-30, 1e15)
  def test_any_length_of_the_direction(self, length):
    got = transforms.remove_component(
        {'w': jnp.array([3.0, 4.0], jnp.bfloat16)},
        {'w': jnp.array([0.0, length], jnp.float32)})['w']
    self.assertEqual(got.dtype, jnp.bfloat16)
    np.testing.assert_allclose(
        got.astype(np.float32), [3.0, 0.0 if length else 4.0])


class CompositionTest(parameterized.TestCase):

  def test_inside_wrappers(self):
    fisher = {'w': jnp.array([1.0, 2.0])}
    wrap = lambda lr: optax.chain(
        optax.sgd(lr), transforms.project_to_null_space(fisher))
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
