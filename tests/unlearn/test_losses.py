"""Forget and retain terms by hand numbers and against loops."""

import functools
import math
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.config import methods
from mansu_jax.unlearn import forget
from mansu_jax.unlearn import losses
from mansu_jax.unlearn.forget import ascent
from mansu_jax.unlearn.forget import bounded_nll
from mansu_jax.unlearn.forget import dpo
from mansu_jax.unlearn.forget import npo
from mansu_jax.unlearn.forget import prior
from mansu_jax.unlearn.forget import rmu
from mansu_jax.unlearn.forget import satimp
from mansu_jax.unlearn.forget import simnpo
from mansu_jax.unlearn.forget import undial
from mansu_jax.unlearn.forget import wga
from tests.reference import unlearn_naive

_NLLS = np.array([1e-3, 0.1, 1.0, 5.0, 40.0, 300.0], np.float32)


def _gradient(fn, x):
  return float(jax.grad(lambda v: fn(v).sum())(jnp.float32(x)))


class ChoiceKlTest(absltest.TestCase):

  @pytest.mark.medium
  def test_sees_the_order_among_tokens_that_are_rare(self):
    logits = jnp.array([20.0, 2.0, 0.0, 0.0, -3.0])  # Token 0 is never asked.
    got = losses.choice_kl(
        jnp.array([0.0, 0.5, 0.5, 0.0]), logits, jnp.array([1, 2, 3, 0]),
        jnp.array([True, True, True, False]))
    self.assertAlmostEqual(
        float(got), unlearn_naive.choice_kl(logits.tolist(), 1, [2, 3]),
        places=5)
    whole = jnp.array([0.0, 0.0, 0.5, 0.5, 0.0])
    self.assertLess(_gradient(  # Nothing is left of it in the vocabulary.
        lambda x: losses.distribution_kl(whole, logits.at[1].set(x)), 2.0),
                    1e-7)
    self.assertGreater(_gradient(lambda x: losses.choice_kl(
        jnp.array([0.0, 0.5, 0.5]), logits.at[1].set(x),
        jnp.array([1, 2, 3]), jnp.ones(3, bool)), 2.0), 0.5)

  def test_padding_has_no_gradient(self):
    gradient = jax.grad(lambda x: losses.choice_kl(
        jnp.array([0.0, 1.0, 0.0]), x, jnp.array([1, 2, 0]),
        jnp.array([True, True, False])))(jnp.zeros(4))
    np.testing.assert_allclose(gradient, [0.0, 0.5, -0.5, 0.0], atol=1e-6)


class ExcessTest(parameterized.TestCase):

  @parameterized.parameters(
      (5.0, 3.0, 0.0, 0.0), (3.0, 3.0, 0.0, 0.0), (2.0, 3.0, 0.5, -1.0),
      (1.0, 3.0, 2.0, -2.0), (0.0, 9.0, 16.0, -2.0))
  def test_by_hand(self, nll, nll_prior, want, gradient):
    fn = lambda x: prior.excess(x, jnp.float32(nll_prior), slope=2.0)
    self.assertEqual(float(fn(jnp.float32(nll))), want)
    self.assertEqual(_gradient(fn, nll), gradient)
    self.assertEqual(want, unlearn_naive.excess(nll, nll_prior, 2.0))

  def test_a_margin_lowers_the_prior(self):
    fn = lambda x: prior.excess(x, jnp.float32(3.0), margin=1.5, slope=2.0)
    self.assertEqual(float(fn(jnp.float32(4.0))), 0.125)
    self.assertEqual(_gradient(fn, 4.0), -0.5)
    self.assertEqual(float(fn(jnp.float32(4.5))), 0.0)


class GuessTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.logits = 4 * np.random.default_rng(0).normal(
        size=(6, 9)).astype(np.float32)

  def test_equals_the_loops(self):
    tokens, relation = [3, 5, 3, 8, 1, 1], [0, 0, 0, 0, 1, 1]
    own, guess = jax.jit(prior.guess_nll)(
        self.logits, np.int32(tokens), np.int32(relation))
    want, want_guess = unlearn_naive.guess_nll(
        self.logits.tolist(), tokens, relation)
    np.testing.assert_allclose(own, want, rtol=1e-5)
    np.testing.assert_allclose(guess[:4], want_guess[:4], rtol=1e-5)
    self.assertEqual(want_guess[4:], [None, None])  # One answer in relation 1.
    term = prior.excess(own, guess, margin=1.0)
    np.testing.assert_array_equal(term[4:], 0.0)

  def test_it_is_0_for_a_model_that_does_not_read_the_subject(self):
    tokens = np.int32([3, 5, 2, 8, 1, 7])
    own, guess = prior.guess_nll(
        jnp.tile(self.logits[:1], (6, 1)), tokens, np.zeros(6, np.int32))
    np.testing.assert_allclose(own, guess, rtol=1e-6)

  def test_what_an_answer_loses_other_prompts_gain(self):
    # Prompt 0 says 0.7 and prompt 1 says 0.2 of answer 0. Both say 0.1 of
    # answer 1, so that it has no excess.
    p = np.float32([[0.7, 0.1, 0.2], [0.2, 0.1, 0.7]])
    gradient = jax.grad(lambda logits: prior.guess_excess(
        logits, np.int32([0, 1]), np.int32([0, 0])).sum())(jnp.log(p))
    over = np.log(0.7 / 0.2)  # In nats.
    want = over * (np.eye(3)[0] - p) * [[1], [-1]]
    np.testing.assert_allclose(gradient, want, rtol=1e-5)


class TokenTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits, self.other = rng.normal(
        size=(2, 3, 4, 7)).astype(np.float32) * 5
    self.labels = rng.integers(0, 7, (3, 4))

  def test_nll_and_kl_equal_the_loops(self):
    nll = losses.token_nll(self.logits, self.labels)
    kl = losses.token_kl(self.other, self.logits)
    for at in np.ndindex(3, 4):
      row = self.logits[at].tolist()
      self.assertAlmostEqual(
          float(nll[at]), -unlearn_naive.log_softmax(row)[self.labels[at]],
          places=4)
      self.assertAlmostEqual(
          float(kl[at]), unlearn_naive.kl(self.other[at].tolist(), row),
          places=4)

  def test_kl_by_hand_is_0_for_equals_and_asymmetric(self):
    p, q = jnp.log(jnp.array([0.9, 0.1])), jnp.log(jnp.array([0.5, 0.5]))
    self.assertAlmostEqual(float(losses.token_kl(p, p)), 0.0, places=6)
    self.assertAlmostEqual(
        float(losses.token_kl(p, q)),
        0.9 * math.log(1.8) + 0.1 * math.log(0.2), places=5)
    self.assertAlmostEqual(
        float(losses.token_kl(q, p)),
        0.5 * math.log(5 / 9) + 0.5 * math.log(5), places=5)

  def test_kl_of_a_distribution_is_that_of_its_logits(self):
    target = jax.nn.softmax(self.other)
    np.testing.assert_allclose(
        losses.distribution_kl(target, self.logits),
        losses.token_kl(self.other, self.logits), rtol=1e-4, atol=1e-5)
    sure = losses.distribution_kl(
        jnp.array([0.0, 1.0]), jnp.log(jnp.array([0.75, 0.25])))
    self.assertAlmostEqual(float(sure), math.log(4), places=5)

  def test_large_logits_stay_finite(self):
    logits = jnp.array([1e4, 0.0, -1e4])
    self.assertEqual(float(losses.token_nll(logits, jnp.array(0))), 0.0)
    self.assertEqual(float(losses.token_nll(logits, jnp.array(2))), 2e4)

  def test_weighted_mean_leaves_out_weight_zero(self):
    got = losses.weighted_mean(
        jnp.array([[1.0, 3.0], [99.0, 5.0]]), jnp.array([[1.0, 1], [0, 2]]))
    self.assertAlmostEqual(float(got), 14 / 4)
    self.assertEqual(
        float(losses.weighted_mean(jnp.ones(3), jnp.zeros(3))), 0.0)


class NpoTest(parameterized.TestCase):

  @parameterized.parameters(
      # nll, nll_base, beta, value
      (3.0, 3.0, 0.1, 20 * math.log(2)),
      (3.0, 3.0, 1.0, 2 * math.log(2)),
      (1.0 + math.log(3), 1.0, 1.0, 2 * math.log(4 / 3)),
      (1.0, 1.0 + math.log(3), 1.0, 2 * math.log(4)))
  def test_hand_values(self, nll, nll_base, beta, want):
    got = npo.npo(jnp.float32(nll), jnp.float32(nll_base), beta=beta)
    self.assertAlmostEqual(float(got), want, places=4)

  @parameterized.parameters(0.05, 0.1, 1.0)
  def test_equals_the_formula_of_the_paper(self, beta):
    for nll in (0.5, 2.0, 9.0):
      got = npo.npo(jnp.float32(nll), jnp.float32(2.5), beta=beta)
      want = unlearn_naive.npo(nll, 2.5, beta)
      self.assertAlmostEqual(float(got), want, places=4)

  @parameterized.parameters(
      # The gradient of log p has weight 2 p^beta / (p^beta + p_0^beta): 1 at
      # the start, fading as the answer is forgotten. nll = -log p.
      (3.0, 3.0, 0.1, -1.0), (1.0 + math.log(3), 1.0, 1.0, -0.5),
      (1.0, 1.0 + math.log(3), 1.0, -1.5), (500.0, 1.0, 1.0, 0.0))
  def test_hand_gradients(self, nll, nll_base, beta, want):
    got = _gradient(lambda x: npo.npo(x, nll_base, beta=beta), nll)
    self.assertAlmostEqual(got, want, places=5)

  def test_no_gradient_reaches_the_base(self):
    # The reference is part of the batch; the loss depends only on nll.
    got = jax.grad(npo.npo)(2.0, 2.0, beta=0.1)
    self.assertAlmostEqual(float(got), -1.0, places=5)


class BoundTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('npo', lambda x: npo.npo(x, 2.0, beta=0.1)),
      ('simnpo', lambda x: simnpo.simnpo(x, jnp.float32(2), beta=0.1)),
      ('bounded_nll', bounded_nll.bounded_nll))
  def test_forgetting_ends_at_zero_with_a_fading_gradient(self, loss):
    values = np.array([float(loss(jnp.float32(x))) for x in _NLLS])
    slopes = np.array([_gradient(loss, x) for x in _NLLS])
    self.assertTrue(np.all(np.isfinite(values)) and np.all(values >= 0))
    self.assertTrue(np.all(np.diff(values) <= 0))
    self.assertTrue(np.all(slopes <= 0))
    self.assertTrue(np.all(np.isfinite(slopes)))
    self.assertAlmostEqual(float(loss(jnp.float32(5000))), 0.0, places=6)
    self.assertAlmostEqual(_gradient(loss, 5000), 0.0, places=6)

  def test_ascent_has_no_bound(self):
    np.testing.assert_array_equal(ascent.ascent(_NLLS), -_NLLS)
    self.assertEqual(_gradient(ascent.ascent, 5000), -1.0)


class SimnpoTest(parameterized.TestCase):

  @parameterized.parameters((2.0, 1, 0.1, 0.0), (8.0, 4, 1.0, 0.0),
                            (3.0, 2, 2.5, 0.5))
  def test_equals_the_formula_of_the_paper(self, nll, length, beta, margin):
    got = simnpo.simnpo(
        jnp.float32(nll), jnp.float32(length), beta=beta, margin=margin)
    want = unlearn_naive.simnpo(nll, length, beta, margin)
    self.assertAlmostEqual(float(got), want, places=4)

  def test_simnpo_depends_on_length(self):
    one, two = (simnpo.simnpo(jnp.float32(4), jnp.float32(n), beta=1.0)
                for n in (1, 2))
    self.assertLess(float(one), float(two))


class UnlikelihoodTest(parameterized.TestCase):

  @parameterized.parameters(0.01, 0.1, 0.693147, 3.0)
  def test_equals_the_formula(self, nll):
    got = float(bounded_nll.bounded_nll(jnp.float32(nll)))
    self.assertLess(
        abs(got / unlearn_naive.unlikelihood(nll) - 1), 2e-3)

  @parameterized.parameters(0.0, 1e-7, 1e-5, 1e-4)
  def test_a_certain_answer_is_pushed_hardest(self, nll):
    # Falling in nll everywhere: the surest answers have most to forget.
    self.assertTrue(np.isfinite(bounded_nll.bounded_nll(jnp.float32(nll))))
    slope = _gradient(bounded_nll.bounded_nll, nll)
    self.assertTrue(np.isfinite(slope))
    self.assertLess(slope, _gradient(bounded_nll.bounded_nll, 0.01))


class WeightedAscentTest(parameterized.TestCase):

  @parameterized.parameters(
      # p, power, value: -p^power (-log p)
      (0.5, 0.0, -math.log(2)), (0.5, 1.0, -math.log(2) / 2),
      (0.25, 0.5, -math.log(2)), (0.125, 2.0, -3 * math.log(2) / 64))
  def test_wga_by_hand(self, p, power, want):
    nll = -math.log(p)
    got = wga.wga(jnp.float32(nll), power=power)
    self.assertAlmostEqual(float(got), want, places=6)
    self.assertAlmostEqual(
        unlearn_naive.satimp(nll, power, 0.0), want, places=6)

  @parameterized.parameters(
      # p, saturation, importance, weight
      (0.5, 1.0, 1.0, 0.25), (0.25, 0.5, 0.0, 0.5), (0.25, 1.0, 2.0, 9 / 64),
      (0.5, 5.0, 1.0, 1 / 64))
  def test_satimp_by_hand(self, p, saturation, importance, weight):
    nll = -math.log(p)
    fn = functools.partial(
        satimp.satimp, saturation=saturation, importance=importance)
    self.assertAlmostEqual(
        float(fn(jnp.float32(nll))), -weight * nll, places=6)
    # No gradient reaches the weight.
    self.assertAlmostEqual(_gradient(fn, nll), -weight, places=6)

  def test_forgotten_and_certain_tokens_move_nothing(self):
    wga_of = functools.partial(wga.wga, power=1.0)
    satimp_of = functools.partial(
        satimp.satimp, saturation=5.0, importance=1.0)
    for fn in (wga_of, satimp_of):
      self.assertAlmostEqual(_gradient(fn, 200.0), 0.0, places=6)
    self.assertEqual(_gradient(wga_of, 0.0), -1.0)
    self.assertEqual(_gradient(satimp_of, 0.0), 0.0)

  def test_rounding_below_0_is_no_number_less(self):
    fn = functools.partial(satimp.satimp, saturation=5.0, importance=0.5)
    self.assertEqual(_gradient(fn, -1e-7), 0.0)


class UndialTest(absltest.TestCase):

  def test_by_hand(self):
    # The base gives its label 1/2, and e^-strength of that weight is left.
    base = jnp.log(jnp.array([[2.0, 1, 1]]))
    label, strength = jnp.array([0]), math.log(2)
    got = undial.undial(jnp.zeros((1, 3)), base, label, strength=strength)
    np.testing.assert_allclose(got, [math.log(3)], rtol=1e-6)
    gradient = jax.grad(lambda x: undial.undial(
        x, base, label, strength=strength).sum())(jnp.zeros((1, 3)))
    np.testing.assert_allclose(gradient, [[0.0, 0, 0]], atol=1e-6)

  def test_it_is_least_at_the_lowered_distribution(self):
    base = jnp.array([[3.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
    labels = jnp.array([0, 2])
    lowered = base - 4 * jax.nn.one_hot(labels, 3)
    gradient = jax.grad(lambda x: undial.undial(
        x, base, labels, strength=4.0).sum())
    np.testing.assert_allclose(gradient(lowered + 7), 0, atol=1e-6)
    slope = gradient(base)[jnp.arange(2), labels]
    self.assertGreater(float(slope.min()), 0)  # The labels' logits fall.


class DpoTest(absltest.TestCase):

  def test_by_hand(self):
    # sigma(log 3) = 3/4: the refusal gains log 3 / beta nats on the answer.
    gain = jnp.array([0.0, math.log(3) / 0.5])
    got = dpo.dpo(1.0 - gain, jnp.ones(2), beta=0.5)
    np.testing.assert_allclose(
        got, [4 * math.log(2), 4 * math.log(4 / 3)], rtol=1e-6)


class RmuTest(absltest.TestCase):

  def test_by_hand(self):
    states = jnp.zeros((2, 8))
    np.testing.assert_allclose(rmu.rmu(states, 4.0), 4.0**2 / 8, rtol=1e-6)
    slope = jax.grad(lambda x: rmu.rmu(x, 4.0).sum())(states)
    direction = slope * -8 / (2 * 4.0)  # From the derivative of the square.
    np.testing.assert_allclose(
        jnp.linalg.norm(direction, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(direction[0], direction[1])
    self.assertTrue((direction >= 0).all())
    np.testing.assert_allclose(rmu.rmu(4 * direction, 4.0), 0, atol=1e-9)


class TableTest(absltest.TestCase):

  def test_each_module_is_a_loss_that_a_flag_names(self):
    modules = {path.stem for path in pathlib.Path(
        forget.__file__).parent.glob('*.py')} - {'__init__', 'term'}
    self.assertEqual(modules, set(forget.TERMS))
    self.assertEqual({*forget.TERMS, 'none'}, set(methods.LOSSES))
    self.assertContainsSubset(methods.BASELINES.values(), forget.TERMS)


if __name__ == '__main__':
  absltest.main()
