"""Closed forms against least squares, and the tokens that they read."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.config import methods
from mansu_jax.unlearn import closed_forms
from mansu_jax.unlearn.closed_forms import form as form_lib
from mansu_jax.unlearn.closed_forms import lunar
from mansu_jax.unlearn.closed_forms import tokens

_F, _D = 6, 4


def _draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape)


def _moments(forget, retain, cell=None, size=None, redirection=None):
  """Means over tokens, each with a loop of its own, in float64."""
  n, cell = len(forget), np.zeros(len(forget), int) if cell is None else cell
  size = np.ones(n) if size is None else size
  cells, share = np.zeros((cell.max() + 1, _F)), np.zeros(cell.max() + 1)
  for h, c in zip(forget, cell):
    cells[c] += h / n
    share[c] += 1 / n
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), form_lib.Moments(
      forget=sum(np.outer(h, h) for h in forget) / n,
      retain=sum(np.outer(h, h) for h in retain) / len(retain),
      cells=cells, share=share,
      sized=sum(h * s for h, s in zip(forget, size)) / n,
      redirection=np.zeros(_D) if redirection is None else redirection))


def _least_squares(forget, wanted, retain, weight, ridge):
  """The minimum of the three terms, each a block of one stacked system."""
  square = (np.square(forget).sum() / len(forget)
            + weight * np.square(retain).sum() / len(retain)) / _F
  blocks = ((forget, wanted, 1 / len(forget)),
            (retain, np.zeros((len(retain), _D)), weight / len(retain)),
            (np.eye(_F), np.zeros((_F, _D)), ridge * square))
  return np.linalg.lstsq(
      np.concatenate([np.sqrt(w) * a for a, _, w in blocks]),
      np.concatenate([np.sqrt(w) * b for _, b, w in blocks]), rcond=None)[0]


class ClosedFormTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.forget, self.retain = _draw(0, 9, _F), _draw(1, 15, _F)
    self.down = _draw(2, _F, _D)

  def _solve(self, name, moments, weight, ridge, norm=None):
    down = jnp.asarray(self.down, jnp.float32)
    wanted = closed_forms.FORMS[name].wanted(moments, down, norm)
    return form_lib.solve(moments, wanted, retain_weight=weight, ridge=ridge)

  @parameterized.parameters((1.0, 0.01), (0.1, 0.3), (0.0, 0.05))
  def test_lunar_is_the_least_squares_solution(self, weight, ridge):
    redirection = _draw(3, _D)
    got = self._solve('lunar', _moments(
        self.forget, self.retain, redirection=redirection), weight, ridge)
    want = _least_squares(
        self.forget, np.tile(redirection, (9, 1)), self.retain, weight, ridge)
    np.testing.assert_allclose(got, want, atol=2e-5)
    self.assertGreater(np.abs(want).max(), 0.01)

  @parameterized.parameters((1.0, 0.01), (0.1, 0.3))
  def test_group_mean_is_the_least_squares_solution(self, weight, ridge):
    cell = np.array([0, 0, 0, 2, 2, 1, 1, 1, 1])
    got = self._solve('group_mean', _moments(
        self.forget, self.retain, cell), weight, ridge)
    written = self.forget @ self.down
    means = np.stack([written[cell == c].mean(0) for c in cell])
    want = _least_squares(
        self.forget, means - written, self.retain, weight, ridge)
    np.testing.assert_allclose(got, want, atol=2e-5)
    self.assertGreater(np.abs(want).max(), 0.1)

  def test_without_retained_tokens_the_facts_of_a_cell_become_equal(self):
    self.forget = self.forget[:_F - 1]  # As many as fit without error.
    cell = np.array([0, 0, 0, 1, 1])
    edit = self._solve('group_mean', _moments(
        self.forget, self.retain, cell), 0.0, 1e-5)
    written = self.forget @ (self.down + edit)
    before = self.forget @ self.down
    for c in 0, 1:
      np.testing.assert_allclose(
          written[cell == c], np.tile(before[cell == c].mean(0), (
              sum(cell == c), 1)), atol=0.01)
    self.assertGreater(np.abs(written - before).max(), 0.5)

  def test_behind_a_norm_the_mlp_adds_the_redirection(self):
    scale, redirection = np.array([1.2, 0.7, 1.0, 1e-6]), _draw(3, _D)
    forget = self.forget[:1]
    size = np.sqrt(np.square(forget @ self.down).mean(1))
    edit = self._solve('lunar', _moments(
        forget, self.retain, size=size, redirection=redirection), 0.0, 1e-4,
                       jnp.asarray(scale, jnp.float32))
    added = scale * (forget @ np.asarray(edit)) / size[:, None]  # As it was.
    np.testing.assert_allclose(added[0, :3], redirection[:3], rtol=0.02)
    np.testing.assert_allclose(added[0, 3], 0, atol=1e-3)
    self.assertLess(np.abs(edit).max(), 100)

  def test_before_norm_by_hand(self):
    np.testing.assert_array_equal(lunar.before_norm(jnp.ones(2), None), 1)
    np.testing.assert_allclose(  # 2 * 3 / (4 + 0.01 * (4 + 0) / 2)
        lunar.before_norm(jnp.array([3.0, 5.0]), jnp.array([2.0, 0.0])),
        [6 / 4.02, 0], rtol=1e-6)


class TokensTest(absltest.TestCase):

  def test_tokens_that_another_fact_shares_are_left_out(self):
    got = tokens.first_own(
        [[1, 2, 5, 6], [1, 2, 7], [9, 5], [9, 5, 6]],
        ['x', 'y', 'x', 'x'], [[1, 2, 7, 3], [8, 9]])
    # The second is shared as a whole; the last two are one fact's.
    np.testing.assert_array_equal(got, [2, 2, 0, 0])

  def test_prompts_are_aligned_at_their_ends(self):
    got = tokens.cells(
        [('a', 'all')] * 3 + [('b', 'all'), ('c', 'all')], list('xyzxy'),
        [2, 4, 3, 1, 2])
    first, second, third, fourth, fifth = got
    np.testing.assert_array_equal(first, second[-2:])
    np.testing.assert_array_equal(third, second[-3:])
    self.assertEqual(second[0], second[1])  # No other is as long.
    self.assertLen(set(second), 3)
    # Alone in their keys, the others share the wider one.
    np.testing.assert_array_equal(fourth, fifth[-1:])
    self.assertEqual(fifth[0], fifth[1])
    self.assertEmpty({*fifth} & {*second})

  def test_another_phrasing_of_one_fact_is_no_company(self):
    alone, other = tokens.cells([['k', 0], ['k', 0]], ['x', 'x'], [2, 3])
    np.testing.assert_array_equal(alone, other[-2:])


class TableTest(absltest.TestCase):

  def test_each_module_is_a_method(self):
    modules = {path.stem for path in pathlib.Path(
        closed_forms.__file__).parent.glob('*.py')} - {
            '__init__', 'form', 'tokens'}
    self.assertEqual(modules, set(closed_forms.FORMS))
    self.assertEqual(modules, set(methods.CLOSED_FORMS))
    self.assertContainsSubset(modules, methods.METHODS)


if __name__ == '__main__':
  absltest.main()
