"""The fixed grid equals quantizing again, also after gathering."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax import quant

_NAMES = (*(name for name, scheme in quant.SCHEMES.items()
            if scheme.holds_scale), 'nf4_dq')
_GGUF = ('q4_0', 'q4_1', 'q5_0', 'q8_0')
_LAYOUT = {
    'down': quant.BlockLayout(memory='LFD', out='D', inp='F'), 'norm': None}


def _params(dtype=jnp.float32, shape=(2, 32, 10)):
  rng = np.random.default_rng(0)
  return {
      'down': jnp.asarray(rng.normal(size=shape) * 0.02, dtype),
      'norm': jnp.ones(3)}


def _encoded(leaf, name, layout):
  """Codes of the whole leaf by blocks, in memory order."""
  codes = quant.get(name).encode(quant.to_rows(leaf, layout))
  return jax.tree.map(
      lambda x: quant.from_rows(x, layout, leaf.shape), codes)


def _codes(leaf, name):
  return _encoded(leaf, name, _LAYOUT['down']).code


class CodeGridTest(parameterized.TestCase):

  @parameterized.product(
      name=_NAMES, dtype=('float32', 'bfloat16'), width=(10, 11))
  def test_decodes_to_the_quantized_weights(self, name, dtype, width):
    params = _params(dtype, (2, 32, width))  # 11: the last block is partial.
    grid = quant.code_grid(params, name, _LAYOUT)
    want = quant.fake_quantize(params, name, _LAYOUT)
    self.assertIsNone(grid.leaves['norm'])
    leaf = grid.leaves['down']
    np.testing.assert_array_equal(
        leaf.encode(params['down']), _codes(params['down'], name))
    view = quant.grid_view(grid, params)
    np.testing.assert_array_equal(view['down'], want['down'])
    self.assertEqual(view['down'].dtype, params['down'].dtype)
    self.assertIs(view['norm'], params['norm'])

  def test_view_of_moved_weights_equals_quantizing_again(self):
    for name in _NAMES:
      with self.subTest(name):
        params = _params(shape=(2, 32, 11))
        grid = quant.code_grid(params, name, _LAYOUT)
        rng = np.random.default_rng(1)
        moved = params['down'] + 0.01 * rng.normal(size=params['down'].shape)
        extent = grid.leaves['down'].extent()
        moved = jnp.where(
            grid.sets_scale(params)['down'], params['down'],
            jnp.clip(moved, *extent))
        moved = {'down': moved, 'norm': params['norm']}
        jax.tree.map(
            np.testing.assert_array_equal, grid.decode_nearest(moved),
            quant.fake_quantize(moved, name, _LAYOUT))

  def test_slices_give_slices_of_the_view(self):
    for name in _NAMES:
      with self.subTest(name):
        params = _params(shape=(2, 32, 11))
        grid = quant.code_grid(params, name, _LAYOUT)
        neurons = np.array([3, 31, 32])  # The last is padding.
        take = lambda tree: {'down': jnp.take(
            tree['down'], neurons, axis=1, mode='fill', fill_value=0)}
        gathered = grid.map_fields(take)
        slices = take(params)
        view = quant.grid_view(gathered, slices)['down']
        want = take(quant.fake_quantize(params, name, _LAYOUT))['down']
        np.testing.assert_array_equal(view, want)
        np.testing.assert_array_equal(view[:, 2], 0)
        self.assertTrue(np.all(gathered.sets_scale(slices)['down'][:, 2]))
        self.assertFalse(np.any(np.isnan(view)))
        # Quantizing the slices themselves would give other blocks.
        # INT8 scales whole rows, and GGUF cannot cut these.
        if name not in ('int8', *_GGUF):
          own = quant.fake_quantize(
              {'down': slices['down'][:, :2]}, name, {'down': _LAYOUT['down']})
          self.assertTrue(np.any(own['down'] != view[:, :2]))

  @pytest.mark.medium
  def test_block_parameters_are_stored_once(self):
    layouts = {
        'columns_first': ((2, 128, 10), _LAYOUT['down'], (2, 2, 10)),
        'torch': ((10, 128), quant.TORCH, (10, 2)),
        'heads': ((2, 10, 3, 16), quant.BlockLayout(
            memory='LDNH', out='D', inp='NH'), (2, 10, 3, 1)),
        'straddling': ((10, 24), quant.TORCH, (10, 3))}
    for name, (shape, layout, want) in layouts.items():
      x = jax.random.normal(jax.random.key(0), shape)
      leaf = quant.code_grid(x, 'nf4', layout).leaves
      self.assertEqual(leaf.shared.scale.shape, want, name)
      whole = _encoded(x, 'nf4', layout)
      np.testing.assert_array_equal(leaf.spread().scale, whole.scale)
      np.testing.assert_array_equal(leaf.sets_scale(x), whole.frozen)

  def test_non_finite_values_become_nan(self):
    params = _params()
    bad = jnp.zeros((2, 32, 10)).at[0, 0, :3].set(
        jnp.array([jnp.nan, jnp.inf, -jnp.inf]))
    for name in _NAMES:
      view = quant.grid_view(
          quant.code_grid(params, name, _LAYOUT), params | {'down': bad})
      np.testing.assert_array_equal(
          np.isnan(view['down']), ~np.isfinite(bad), name)

  def test_partial_blocks_are_marked(self):
    grid = quant.code_grid(_params(shape=(2, 32, 10)), 'nf4', _LAYOUT)
    self.assertIsNone(grid.leaves['down'].shared.tail)
    grid = quant.code_grid(_params(shape=(2, 32, 11)), 'nf4', _LAYOUT)
    rows = quant.to_rows(
        grid.leaves['down'].spread().tail, _LAYOUT['down'])
    want = np.arange(11 * 32) >= 5 * 64
    np.testing.assert_array_equal(rows.reshape(2, -1), np.stack([want] * 2))

  def test_codes_are_those_after_the_storage_cast(self):
    params = _params()
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    jitted = jax.jit(
        quant.code_grid, static_argnames=('scheme', 'layout', 'storage_dtype'))
    for make in (quant.code_grid, jitted):
      layout = quant.BlockLayout(memory='LFD', out='D', inp='F')
      got = make(
          params['down'], scheme='int8', layout=layout,
          storage_dtype=jnp.bfloat16)
      want = quant.code_grid(cast['down'], 'int8', layout)
      np.testing.assert_array_equal(got.scale, want.scale)
      plain = quant.code_grid(params['down'], 'int8', layout)
      self.assertTrue(np.any(plain.scale != got.scale))

  def test_is_a_pytree_with_boundaries(self):
    params = _params()
    grid = quant.code_grid(params, 'nf4', _LAYOUT)
    self.assertLen(jax.tree.leaves(grid), 1)
    again = jax.jit(lambda g: g)(grid)
    self.assertEqual(again.scheme, grid.scheme)
    lo, hi = again.boundaries(params)
    self.assertIsNone(lo['norm'])
    self.assertTrue(np.all(
        (lo['down'] <= params['down']) & (params['down'] <= hi['down'])))

  @parameterized.parameters('q4_k', 'q6_k')
  def test_refuses_schemes_that_search_for_scales(self, name):
    with self.assertRaisesRegex(ValueError, f'{name} fits its scales.*Measure'):
      quant.code_grid(_params(), name, _LAYOUT)

  @parameterized.parameters(
      ('int8', 'float8_e4m3fn', True), ('q8_0', 'float8_e4m3fn', True),
      ('int8', 'float8_e5m2', True), ('nf4', 'float8_e5m2', False),
      ('nf4', 'float8_e4m3fn', False), ('int8', 'bfloat16', False),
      ('q8_0', 'float16', False))
  def test_refuses_a_dtype_that_skips_codes(self, name, dtype, refused):
    # By definition: no value of the dtype encodes to some code.
    scheme, dtype = quant.get(name), jnp.dtype(dtype)
    bits = np.uint8 if dtype.itemsize == 1 else np.uint16
    values = np.arange(2.0**(8 * dtype.itemsize)).astype(bits).view(dtype)
    values = values.astype(np.float32)
    count = jax.jit(lambda x, absmax: scheme.level(scheme.encode(
        jnp.where(abs(x) <= absmax, x, absmax)[None]).code))
    missed = 0
    for absmax in values[(values >= 1) & (values < 2)][:8]:
      x = np.where(np.isfinite(values), values, 0)
      x = np.pad(x, (0, -x.size % 31)).reshape(-1, 31)  # Blocks of 32.
      x = np.pad(x, ((0, 0), (1, 0)), constant_values=absmax)
      codes = count(x.ravel(), absmax)
      missed += len(np.unique(codes)) < len(scheme.levels)
    self.assertEqual(missed > 0, refused)
    make = lambda: quant.code_grid(
        _params(), name, _LAYOUT, storage_dtype=dtype)
    if refused:
      with self.assertRaisesRegex(ValueError, f"{dtype.name}, in which 'down'"):
        make()
    else:
      make()

  def test_view_refuses_other_trees(self):
    grid = quant.code_grid(_params(), 'nf4', _LAYOUT)
    with self.assertRaisesRegex(ValueError, "no leaf 'up'"):
      quant.grid_view(grid, _params() | {'up': jnp.ones(3)})
    with self.assertRaisesRegex(ValueError, r"\(2, 32, 10\) at 'down'"):
      quant.grid_view(grid, _params(shape=(2, 3, 10)))


if __name__ == '__main__':
  absltest.main()
