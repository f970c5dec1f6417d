"""The invariant of the floor at every step, checked by quantizing again.

A weight is bit-equal to theta_0, or its decoded value after the cast to the
storage dtype differs from that of theta_0. Block maxima never move. Weights
that landed on a centre are fixed points of the first quantizer. A non-finite
update makes its weight NaN and changes no other weight.
"""

from absl.testing import absltest
from absl.testing import parameterized
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax import quant
from mansu_jax import transforms

_SHAPE = (32, 17)  # Blocks span rows, and the last block is partial.
_LAYOUT = quant.BlockLayout(memory='DF', out='F', inp='D')
_ALL = ('nf4', 'fp4', 'int8', 'int4_g128')
_GGUF = ('q4_0', 'q4_1', 'q8_0')
_NAMES = (('nf4',), ('fp4',), ('int8',), ('nf4', 'int4_g128'), _ALL,
          ('q4_0',), ('q4_1',), ('q5_0', 'nf4_dq'), _GGUF, ('nf4', *_GGUF))
_DTYPES = (('float32', 'float32'), ('bfloat16', 'float32'),
           ('float16', 'float16'), ('float32', 'bfloat16'))
_OPTIONS = (('hold', 'centre'), ('hold', 'boundary'), ('lift', 'centre'))
# All pairs of schemes, dtypes and options occur; each case compiles a step.
_CASES = [(names, dtypes, _OPTIONS[(i + j) % len(_OPTIONS)])
          for i, names in enumerate(_NAMES) for j, dtypes in enumerate(_DTYPES)]
_BAD = (np.nan, np.inf, -np.inf)
_KINDS = ('normal', 'heavy', 'lattice', 'sparse', 'tiny')
_DRAWS = dict(
    seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(_KINDS),
    step=st.sampled_from((1e-4, 1e-2, 0.1, 1.0)))


def _draw(rng, kind, size):
  if kind == 'normal':
    x = rng.normal(size=_SHAPE)
  elif kind == 'heavy':
    x = rng.standard_t(2, _SHAPE)
  elif kind == 'lattice':  # Ties: several maxima, weights on boundaries.
    x = rng.integers(-8, 9, _SHAPE) / 8
  elif kind == 'sparse':  # Whole blocks of zeros.
    x = rng.normal(size=_SHAPE) * (np.arange(17) < 9)
  else:  # Near and below the smallest float16.
    x = rng.normal(size=_SHAPE) * 1e-5
  return x * size


def _bits(x):
  return np.asarray(x, np.float32).view(np.int32)


def _as_stored(weights, dtype):
  """The exported weights, as float32 for comparison."""
  return weights.astype(dtype).astype(jnp.float32)


class InvariantTest(parameterized.TestCase):

  def _check(self, theta0, theta, names, storage, landing):
    """Checks the invariant; returns the number of moved weights."""
    moved = _bits(theta) != _bits(theta0)
    old, new = (_as_stored(x, storage) for x in (theta0, theta))
    for name in names:
      before = np.asarray(quant.fake_quantize(old, name, _LAYOUT))
      after = np.asarray(quant.fake_quantize(new, name, _LAYOUT))
      np.testing.assert_array_equal(before != after, moved)
      shared = [
          quant.code_grid(x, name, _LAYOUT).leaves.shared
          for x in (old, new)]
      jax.tree.map(lambda a, b: np.testing.assert_array_equal(
          _bits(a), _bits(b)), *shared)
    if landing == 'centre':
      landed = quant.fake_quantize(new, names[0], _LAYOUT)
      landed = _as_stored(landed.astype(theta.dtype), storage)
      # 127 * (absmax / 127) may differ from absmax, which bounds all weights;
      # under q4_0 it is a strict bound.
      tolerance = 0 if set(names) <= {'nf4', 'fp4'} else 2**-22
      np.testing.assert_allclose(
          np.asarray(landed)[moved], np.asarray(new)[moved], rtol=tolerance)
    return moved.sum()

  @parameterized.parameters(*_CASES[::3])
  @settings(max_examples=10, deadline=None)
  @given(**_DRAWS)
  def test_at_every_step(self, names, dtypes, options, **drawn):
    self._check_steps(names, dtypes, options, **drawn)

  @parameterized.parameters(*(case for i, case in enumerate(_CASES) if i % 3))
  @pytest.mark.slow
  @settings(max_examples=10, deadline=None)
  @given(**_DRAWS)
  def test_at_every_step_in_all_cases(self, names, dtypes, options, **drawn):
    self._check_steps(names, dtypes, options, **drawn)

  def _check_steps(self, names, dtypes, options, seed, kind, step):
    rng, (dtype, storage), (mode, landing) = (
        np.random.default_rng(seed), dtypes, options)
    theta0 = jnp.asarray(_draw(rng, kind, 0.02), dtype)
    grids = [
        quant.code_grid(theta0, name, _LAYOUT, storage_dtype=jnp.dtype(storage))
        for name in names]
    tx = transforms.magnitude_floor(
        grids, mode=mode, landing=landing, lift_step=2,
        storage_dtype=storage)
    state = tx.init(theta0)
    for count in range(1, 5):
      update = jnp.asarray(_draw(rng, kind, 0.02 * step), jnp.float32)
      if count == seed % 4 + 1:
        _check_non_finite(tx, state, theta0, update, _BAD[seed % 3], rng)
      _, state = _update(tx, update, state, theta0)
      theta = transforms.floor_params(state)
      self.assertEqual(theta.dtype, theta0.dtype)
      if mode == 'hold' or count >= 2:
        moved = self._check(theta0, theta, names, storage, landing)
    if step == 1.0 and kind == 'normal':
      self.assertGreater(moved, 20)  # The invariant is not vacuous.


class NoFloorTest(parameterized.TestCase):

  @parameterized.parameters(*_DTYPES)
  def test_non_finite_updates_make_weights_nan(self, dtype, storage):
    rng = np.random.default_rng(0)
    theta0 = jnp.asarray(_draw(rng, 'normal', 0.02), dtype)
    tx = transforms.accumulate_exactly(storage_dtype=storage)
    update = jnp.asarray(_draw(rng, 'normal', 0.01), jnp.float32)
    for bad in _BAD:
      _check_non_finite(tx, tx.init(theta0), theta0, update, bad, rng)


def _check_non_finite(tx, state, params, update, bad, rng):
  """A non-finite update makes its weight NaN for good, and no other weight."""
  hit = rng.random(_SHAPE) < 0.01
  hit[tuple(rng.integers(_SHAPE))] = True
  spoilt, fine = state, state
  for one in (jnp.where(hit, bad, update), update):
    updates, spoilt = _update(tx, one, spoilt, params)
    _, fine = _update(tx, update, fine, params)
    got, want = (
        np.float32(transforms.floor_params(each)) for each in (spoilt, fine))
    np.testing.assert_array_equal(np.isfinite(got), ~hit)
    np.testing.assert_array_equal(np.isfinite(updates), ~hit)
    np.testing.assert_array_equal(got[~hit], want[~hit])


def _update(tx, update, state, params):
  """One step, compiled once for all examples: the state holds the grids."""
  rule = state.rule.func
  if rule not in _STEPS:
    _STEPS[rule] = jax.jit(tx.update)
  return _STEPS[rule](update, state, params)


_STEPS = {}


if __name__ == '__main__':
  absltest.main()
