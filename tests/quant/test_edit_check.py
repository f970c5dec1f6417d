"""`check_edit` against quantizing both trees, in any layout."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mansu_jax import quant
from mansu_jax import transforms

_DENSE = quant.BlockLayout(memory='IO', out='O', inp='I')


def _unlearned(weights, layout, name='nf4', steps=5):
  """Weights after a few steps with a floor of this layout."""
  tx = optax.chain(optax.sgd(0.05), transforms.magnitude_floor(
      quant.code_grid(weights, name, layout)))
  theta, state = weights, tx.init(weights)
  for i in range(steps):
    grads = jnp.sin(50 * (i + 1) * weights)
    theta, state = transforms.step(tx, grads, state, theta)
  return theta


class CheckEditTest(parameterized.TestCase):

  def test_by_hand(self):
    # One INT4 block of absmax 7, whose code centres are the integers.
    before = jnp.array([[7.0, 2.2, 2.2, -3.0, 0.1]])
    after = jnp.array([[7.0, 2.4, 3.0, -3.0, 0.1]])
    check = quant.check_edit(before, after, 'int4_g128', quant.TORCH)
    self.assertEqual(
        (check.moved, check.changed_codes, check.moved_unchanged,
         check.scales_changed), (2, 1, 1, 0))
    self.assertFalse(check.survives)
    kept = quant.check_edit(
        before, before.at[0, 2].set(3.0), 'int4_g128', quant.TORCH)
    self.assertTrue(kept.survives)
    scaled = quant.check_edit(
        before, before.at[0, 0].set(7.1), 'int4_g128', quant.TORCH)
    self.assertEqual((scaled.moved, scaled.scales_changed), (1, 1))
    self.assertFalse(scaled.survives)

  def test_a_code_that_changes_without_a_move(self):
    # 2.4 rounds to 2 steps of 7 / 7, but to 5 steps of 3.5 / 7.
    before, after = jnp.array([[7.0, 2.4]]), jnp.array([[3.5, 2.4]])
    check = quant.check_edit(before, after, 'int4_g128', quant.TORCH)
    self.assertEqual((check.moved, check.changed_codes), (1, 1))
    self.assertEqual(check.scales_changed, 1)
    self.assertFalse(check.survives)

  def test_fp4_zeros_are_one_code(self):
    check = quant.check_edit(
        jnp.array([[1.0, -0.001]]), jnp.array([[1.0, 0.001]]), 'fp4',
        quant.TORCH)
    self.assertEqual((check.moved, check.changed_codes), (1, 0))

  def test_a_cast_that_loses_the_edit(self):
    before, after = jnp.array([[1.0, 0.5]]), jnp.array([[1.0, 0.5001]])
    check = quant.check_edit(
        before, after, 'nf4', quant.TORCH, storage_dtype=jnp.bfloat16)
    self.assertEqual((check.moved, check.moved_unchanged), (1, 1))

  def test_an_export_in_another_dtype(self):
    before = jax.random.normal(jax.random.key(0), (64, 8))
    tx = transforms.magnitude_floor(
        quant.code_grid(before, 'nf4', _DENSE, storage_dtype=jnp.bfloat16),
        storage_dtype=jnp.bfloat16)
    after, _ = transforms.step(
        tx, 0.5 * jnp.sin(50 * before), tx.init(before), before)
    exported = after.astype(jnp.bfloat16)
    for storage in (None, jnp.bfloat16):
      check = quant.check_edit(
          before, exported, 'nf4', _DENSE, storage_dtype=storage)
      self.assertTrue(check.survives, check)
      self.assertGreater(check.moved, 50)

  def test_requires_concrete_values(self):
    check = lambda x: quant.check_edit(x, x, 'nf4', _DENSE)
    with self.assertRaisesRegex(ValueError, 'outside jax.jit'):
      jax.jit(check)(jnp.ones((64, 8)))

  def test_leaves_totals_and_unquantized_leaves(self):
    draw = lambda i: jax.random.normal(jax.random.key(i), (64, 8))
    before = {'a': draw(0), 'b': draw(1), 'norm': jnp.ones(3), 'none': None}
    layout = {'a': _DENSE, 'b': _DENSE, 'norm': None, 'none': None}
    after = before | {
        'a': _unlearned(before['a'], _DENSE), 'norm': jnp.ones(3) * 2}
    check = quant.check_edit(before, after, 'nf4', layout)
    self.assertEqual(set(check.leaves), {'a', 'b'})
    self.assertEqual(check.moved, check.leaves['a'].moved)
    self.assertEqual(check.leaves['b'].moved, 0)
    self.assertEqual(check.moved_unquantized, 3)
    self.assertTrue(check.survives)
    self.assertGreater(check.moved, 50)
    self.assertEqual(
        check.moved, int(jnp.sum(before['a'] != after['a'])))

  @parameterized.parameters('nf4', 'fp4', 'int8', 'int4_g32', 'q4_0', 'nf4_dq')
  @pytest.mark.medium
  def test_equals_quantizing_both(self, name):
    before = jax.random.normal(jax.random.key(0), (64, 32))
    noise = jax.random.normal(jax.random.key(1), (64, 32))
    after = jnp.where(noise > 0.5, before + 0.2 * noise, before)
    check = quant.check_edit(before, after, name, _DENSE)
    old, new = (quant.get(name).encode(quant.to_rows(x, _DENSE))
                for x in (before, after))
    level = quant.get(name).level
    self.assertEqual(check.changed_codes, int(jnp.sum(
        level(old.code) != level(new.code))))
    self.assertEqual(check.moved, int(jnp.sum(before != after)))
    self.assertGreater(check.scales_changed, 0)

  @parameterized.named_parameters(
      ('missing', {'a': jnp.ones((2, 2))}, "no leaf 'b'"),
      ('none', {'a': jnp.ones((2, 2)), 'b': None}, "None at 'b'"),
      ('shape', {'a': jnp.ones((2, 2)), 'b': jnp.ones(3)}, 'has shape'),
      ('nan', {'a': jnp.ones((2, 2)) * np.nan, 'b': jnp.ones(2)}, 'non-finite'))
  def test_refuses(self, after, message):
    before = {'a': jnp.ones((2, 2)), 'b': jnp.ones(2)}
    with self.assertRaisesRegex(ValueError, message):
      quant.check_edit(before, after, 'nf4', {'a': quant.TORCH, 'b': None})


class LayoutTest(parameterized.TestCase):
  """With layouts of other libraries, edits survive in torch's matrix."""

  @parameterized.named_parameters(
      ('torch', (32, 64), quant.TORCH, lambda w: w),
      ('dense', (64, 32), _DENSE, lambda w: w.T),
      ('stacked', (2, 64, 32), quant.BlockLayout(
          memory='LIO', out='O', inp='I'), lambda w: w[1].T),
      ('query', (64, 4, 8), quant.BlockLayout(
          memory='DNH', out='NH', inp='D'), lambda w: w.reshape(64, 32).T),
      ('attention_out', (4, 16, 32), quant.BlockLayout(
          memory='NHD', out='D', inp='NH'), lambda w: w.reshape(64, 32).T),
      ('torch_conv', (32, 8, 3, 3), quant.BlockLayout(
          memory='OIHW', out='O', inp='IHW'), lambda w: w.reshape(32, 72)),
      ('flax_conv', (3, 3, 8, 32), quant.BlockLayout(
          memory='HWIO', out='O', inp='IHW'),
       lambda w: w.transpose(3, 2, 0, 1).reshape(32, 72)))
  @pytest.mark.medium
  def test_edit_survives_in_torch_order(self, shape, layout, to_torch):
    before = jax.random.normal(jax.random.key(0), shape)
    after = _unlearned(before, layout)
    inside = quant.check_edit(before, after, 'nf4', layout)
    exported = quant.check_edit(
        to_torch(before), to_torch(after), 'nf4', quant.TORCH)
    self.assertTrue(inside.survives, inside)
    self.assertTrue(exported.survives, exported)
    self.assertGreater(exported.moved, 50)

  def test_the_export_reveals_a_wrong_layout(self):
    before = jax.random.normal(jax.random.key(0), (64, 64))  # A square kernel.
    after = _unlearned(before, quant.TORCH)  # The kernel is [in, out].
    self.assertTrue(
        quant.check_edit(before, after, 'nf4', quant.TORCH).survives)
    exported = quant.check_edit(before.T, after.T, 'nf4', quant.TORCH)
    self.assertFalse(exported.survives)
    self.assertGreater(exported.moved_unchanged, 0)
    self.assertGreater(exported.scales_changed, 0)


if __name__ == '__main__':
  absltest.main()
