"""Scripts in experiments/ that no other test runs."""

import importlib.util
import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant

_FOLDER = pathlib.Path(__file__).parents[1] / 'experiments'


def _script(name):
  spec = importlib.util.spec_from_file_location(name, _FOLDER / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class RoundedEditTest(absltest.TestCase):

  def test_parts_of_the_quantized_edit_add_up(self):
    rng = np.random.default_rng(0)
    draw = lambda size, scale: jax.tree.map(
        lambda shape: jnp.float32(scale * rng.normal(size=shape)), size,
        is_leaf=lambda x: isinstance(x, tuple))
    shapes = {'matrix': (64, 64), 'norm': (64,)}
    base = draw(shapes, 1.0)
    unlearned = jax.tree.map(jnp.add, base, draw(shapes, 0.05))
    layout = {'matrix': quant.BlockLayout(memory='FD', out='F', inp='D'),
              'norm': None}
    made = dict(_script('rounded_edit').variants(
        base, unlearned, 'nf4', layout, 0))
    edit = lambda name: made[name]['matrix'] - base['matrix']
    rounded = edit('theta_0 + q in quantized leaves')
    np.testing.assert_allclose(
        rounded, made['Q(theta_u)']['matrix'] - made['Q(theta_0)']['matrix'],
        atol=1e-6)
    jumps = edit('theta_0 + q where the code changed')
    drift = edit('theta_0 + q where it did not')
    np.testing.assert_allclose(jumps + drift, rounded, atol=1e-6)
    self.assertFalse(np.any((jumps != 0) & (drift != 0)))
    self.assertGreater(np.abs(jumps).max(), 3 * np.abs(drift).max())
    shuffled = edit('theta_0 + q at other weights')
    np.testing.assert_allclose(
        np.sort(shuffled, None), np.sort(rounded, None), atol=1e-6)
    for name, params in made.items():
      moved = bool((params['norm'] != base['norm']).any())
      self.assertEqual(moved, name in (
          'theta_u', 'Q(theta_u)', 'theta_0 + d in leaves not quantized'))


if __name__ == '__main__':
  absltest.main()
