"""The floor by mode gives the bits of the transformation of that mode."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import quant
from mansu_jax import transforms

_LAYOUT = {'w': quant.BlockLayout(memory='DF', out='F', inp='D'), 'b': None}
_OF_MODE = {
    'hold': transforms.hold_at_origin,
    'lift': lambda grids, **options: transforms.lift_to_floor(
        grids, lift_step=2, **options),
    'none': lambda grids, landing, boundary_margin, **options: (
        transforms.accumulate_exactly(grids, **options))}


def _params():
  rng = np.random.default_rng(0)
  return {'w': jnp.asarray(rng.normal(size=(24, 17)) * 0.02, jnp.float32),
          'b': jnp.ones(3)}


def _grids(params):
  return [quant.code_grid(params, name, _LAYOUT, storage_dtype=jnp.bfloat16)
          for name in ('nf4', 'int8')]


def _walk(tx, params):
  """Weights after each of three steps."""
  state, step = tx.init(params), jax.jit(
      lambda *args: transforms.step(tx, *args, origin=params))
  theta, seen = params, []
  for i in range(3):
    updates = jax.tree.map(lambda p: 0.02 * jnp.sin(100 * (i + 1) * p), params)
    theta, state = step(updates, state, theta)
    seen.append(theta)
  return seen


class MagnitudeFloorTest(parameterized.TestCase):

  @parameterized.product(
      mode=('hold', 'lift', 'none'), landing=('centre', 'boundary'))
  def test_is_the_transformation_of_its_mode(self, mode, landing):
    params = _params()
    options = dict(landing=landing, boundary_margin=1.5, keep_origin=False,
                   storage_dtype=jnp.bfloat16)
    by_mode = transforms.magnitude_floor(
        _grids(params), mode=mode, lift_step=2, **options)
    own = _OF_MODE[mode](_grids(params), **options)
    self.assertIsNone(by_mode.init(params).origin)
    got = _walk(by_mode, params)
    jax.tree.map(np.testing.assert_array_equal, got, _walk(own, params))
    self.assertGreater(int((got[-1]['w'] != params['w']).sum()), 50)

  def test_modes_differ(self):
    params = _params()
    seen = [_walk(transforms.magnitude_floor(
        _grids(params), mode=mode, lift_step=2,
        storage_dtype=jnp.bfloat16), params)[0]['w'] for mode in _OF_MODE]
    for one, other in ((0, 1), (0, 2), (1, 2)):
      self.assertTrue(np.any(seen[one] != seen[other]))

  @parameterized.named_parameters(
      ('mode', {'mode': 'drop'}, "floor mode 'drop'.*hold"),
      ('lift', {'mode': 'lift'}, 'lift_step'),
      ('lift_step', {'mode': 'lift', 'lift_step': 0}, 'from 1, got 0'),
      *((f'landing_{mode}', {'mode': mode, 'landing': 'edge'},
         "landing 'edge'.*centre") for mode in _OF_MODE),
      *((f'margin_{mode}', {'mode': mode, 'boundary_margin': 0.5},
         'is 0.5; wanted at least 1') for mode in _OF_MODE))
  def test_refuses_options(self, options, message):
    with self.assertRaisesRegex(ValueError, message):
      transforms.magnitude_floor(_grids(_params()), **options)

  def test_only_mode_none_needs_no_grids(self):
    transforms.magnitude_floor((), mode='none')
    for mode in ('hold', 'lift'):
      with self.assertRaisesRegex(ValueError, 'no grids'):
        transforms.magnitude_floor((), mode=mode, lift_step=1)


if __name__ == '__main__':
  absltest.main()
