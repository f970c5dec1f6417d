"""The blocked factor of an inverse against NumPy in float64."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.quant import cholesky
from tests.quant import inputs

_inverse_cholesky = jax.jit(cholesky.inverse_cholesky, static_argnames='block')


def _moment(size):
  moment = inputs.second_moment(inputs.correlated(size)).astype(np.float32)
  return moment + 0.01 * np.mean(np.diag(moment)) * np.eye(
      size, dtype=np.float32)


def _factored(jaxpr):
  """Sizes of all factorizations and triangular solves in a program."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name in ('cholesky', 'triangular_solve'):
      found.append(equation.invars[0].aval.shape[-1])
    for value in equation.params.values():
      if hasattr(inner := getattr(value, 'jaxpr', value), 'eqns'):
        found += _factored(inner)
  return found


class InverseCholeskyTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, 128), (5, 128), (16, 16), (17, 8), (40, 8), (40, 1), (200, 128))
  def test_equals_numpy(self, size, block):
    matrix = _moment(size)
    got = np.asarray(_inverse_cholesky(matrix, block=block))
    reverse = matrix.astype(np.float64)[::-1, ::-1]
    want = np.linalg.inv(np.linalg.cholesky(reverse)[::-1, ::-1])
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    np.testing.assert_array_equal(np.tril(got, -1), 0)
    inverse = np.linalg.inv(matrix.astype(np.float64))
    np.testing.assert_allclose(
        got.T @ got, inverse, atol=1e-3 * np.abs(inverse).max())

  def test_only_a_block_is_factored_at_once(self):
    # TPU compilers unroll every factorization.
    sizes = _factored(jax.make_jaxpr(cholesky.inverse_cholesky)(
        jnp.eye(512)).jaxpr)
    self.assertEqual(sizes, [128, 128])

  @parameterized.parameters(4, 16)
  def test_nan_if_there_is_no_factor(self, block):
    matrix = _moment(16)
    matrix[3, 3] = -1
    self.assertTrue(np.isnan(_inverse_cholesky(matrix, block=block)).any())

  @pytest.mark.medium
  def test_vmap(self):
    stack = np.stack([_moment(20), 2 * _moment(20)])
    got = jax.vmap(lambda x: cholesky.inverse_cholesky(x, block=8))(stack)
    for one, matrix in zip(got, stack):
      np.testing.assert_allclose(
          one, _inverse_cholesky(matrix, block=8), rtol=1e-4, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
