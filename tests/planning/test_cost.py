"""Operations are counted as often as loops run, bytes as they are stored."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from mansu_jax.planning import cost

_A, _B, _C, _LOOPS = 8, 16, 32, 5


def _of(f, *shapes, dtype=jnp.float32):
  args = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  return cost.count(jax.jit(f).trace(*args).jaxpr)


class CountTest(parameterized.TestCase):

  def test_a_product(self):
    found = _of(lambda x, y: x @ y, (_A, _B), (_B, _C))
    self.assertEqual(found.flops, 2 * _A * _B * _C)
    self.assertEqual(found.exact, 0)
    self.assertEqual(found.weights, 4 * (_A * _B + _B * _C))
    self.assertEqual(found.activations, 4 * _A * _C)

  def test_a_batched_product_of_results(self):
    found = _of(lambda x, y: jnp.einsum('abc,adc->abd', jnp.sin(x), y),
                (3, _A, _B), (3, _C, _B))
    self.assertEqual(found.flops, 2 * 3 * _A * _B * _C)
    self.assertEqual(found.weights, 4 * 3 * _C * _B)
    self.assertEqual(found.activations, 4 * 3 * (_A * _B + _A * _C))

  def test_weights_count_in_the_dtype_that_they_are_stored_in(self):
    found = _of(lambda x, y: jnp.exp(x) @ y.T.astype(jnp.float32).reshape(
        _B, _C), (_A, _B), (_C, _B), dtype=jnp.bfloat16)
    self.assertEqual(found.weights, 2 * _B * _C)

  def test_a_scan_counts_as_often_as_it_runs(self):
    def f(x, stacked):
      return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stacked)[0]

    found = _of(f, (_A, _B), (_LOOPS, _B, _B))
    self.assertEqual(found.flops, _LOOPS * 2 * _A * _B * _B)
    # Of x the first time only; counted as each time.
    self.assertEqual(found.weights, _LOOPS * 4 * (_B * _B + _A * _B))

  @parameterized.parameters(
      (jax.checkpoint,), (jax.jit,), (jax.vmap,))
  def test_inner_programs_count(self, wrap):
    shape = (1, _A, _B) if wrap is jax.vmap else (_A, _B)
    inner = wrap(lambda x: x @ jnp.ones((_B, _C)))
    self.assertEqual(
        _of(lambda x: inner(jnp.sin(x)), shape).flops, 2 * _A * _B * _C)

  def test_a_gradient_computes_its_products_too(self):
    f = lambda x, w: jnp.sum(jnp.sin(x @ w))
    alone = _of(f, (_A, _B), (_B, _C))
    both = _of(jax.grad(f), (_A, _B), (_B, _C))
    self.assertEqual(both.flops, 2 * alone.flops)

  def test_cond_counts_the_most_expensive_branch(self):
    found = _of(lambda x, y: jax.lax.cond(
        x[0, 0] > 0, lambda: x @ y, lambda: x @ y @ y), (_B, _B), (_B, _B))
    self.assertEqual(found.flops, 2 * 2 * _B**3)

  def test_exact_counts_float32_products(self):
    def f(x, y):
      with jax.default_matmul_precision('float32'):
        return x @ y

    found = _of(f, (_A, _B), (_B, _C))
    self.assertEqual(found.exact, found.flops)
    half = _of(f, (_A, _B), (_B, _C), dtype=jnp.bfloat16)
    self.assertEqual(half.exact, 0)

  def test_costs_add_up(self):
    one = cost.Cost(1, 2, 3, 4)
    self.assertEqual(one + one, one.times(2))


if __name__ == '__main__':
  absltest.main()
