"""Forget and retain terms by hand numbers and against loops."""

import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.unlearn import losses
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
  def test_by_hand(self, nll, prior, want, gradient):
    fn = lambda x: losses.excess(x, jnp.float32(prior), slope=2.0)
    self.assertEqual(float(fn(jnp.float32(nll))), want)
    self.assertEqual(_gradient(fn, nll), gradient)
    self.assertEqual(want, unlearn_naive.excess(nll, prior, 2.0))


  def test_a_margin_lowers_the_prior(self):
    fn = lambda x: losses.excess(x, jnp.float32(3.0), margin=1.5, slope=2.0)
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
    own, guess = jax.jit(losses.guess_nll)(
        self.logits, np.int32(tokens), np.int32(relation))
    want, want_guess = unlearn_naive.guess_nll(
        self.logits.tolist(), tokens, relation)
    np.testing.assert_allclose(own, want, rtol=1e-5)
    np.testing.assert_allclose(guess[:4], want_guess[:4], rtol=1e-5)
    self.assertEqual(want_guess[4:], [None, None])  # One answer in relation 1.
    term = losses.excess(own, guess, margin=1.0)
    np.testing.assert_array_equal(term[4:], 0.0)

  def test_it_is_0_for_a_model_that_does_not_read_the_subject(self):
    tokens = np.int32([3, 5, 2, 8, 1, 7])
    own, guess = losses.guess_nll(
        jnp.tile(self.logits[:1], (6, 1)), tokens, np.zeros(6, np.int32))
    np.testing.assert_allclose(own, guess, rtol=1e-6)


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
    got = losses.npo(jnp.float32(nll), jnp.float32(nll_base), beta=beta)
    self.assertAlmostEqual(float(got), want, places=4)

  @parameterized.parameters(0.05, 0.1, 1.0)
  def test_equals_the_formula_of_the_paper(self, beta):
    for nll in (0.5, 2.0, 9.0):
      got = losses.npo(jnp.float32(nll), jnp.float32(2.5), beta=beta)
      want = unlearn_naive.npo(nll, 2.5, beta)
      self.assertAlmostEqual(float(got), want, places=4)

  @parameterized.parameters(
      # The gradient of log p has weight 2 p^beta / (p^beta + p_0^beta): 1 at
      # the start, fading as the answer is forgotten. nll = -log p.
      (3.0, 3.0, 0.1, -1.0), (1.0 + math.log(3), 1.0, 1.0, -0.5),
      (1.0, 1.0 + math.log(3), 1.0, -1.5), (500.0, 1.0, 1.0, 0.0))
  def test_hand_gradients(self, nll, nll_base, beta, want):
    got = _gradient(lambda x: losses.npo(x, nll_base, beta=beta), nll)
    self.assertAlmostEqual(got, want, places=5)

  def test_no_gradient_reaches_the_base(self):
    # The reference is part of the batch; the loss depends only on nll.
    got = jax.grad(losses.npo)(2.0, 2.0, beta=0.1)
    self.assertAlmostEqual(float(got), -1.0, places=5)


class BoundTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('npo', lambda x: losses.npo(x, 2.0, beta=0.1)),
      ('simnpo', lambda x: losses.simnpo(x, jnp.float32(2), beta=0.1)),
      ('bounded_nll', losses.bounded_nll))
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
    np.testing.assert_array_equal(losses.ascent(_NLLS), -_NLLS)
    self.assertEqual(_gradient(losses.ascent, 5000), -1.0)


class SimnpoTest(parameterized.TestCase):

  @parameterized.parameters((2.0, 1, 0.1, 0.0), (8.0, 4, 1.0, 0.0),
                            (3.0, 2, 2.5, 0.5))
  def test_equals_the_formula_of_the_paper(self, nll, length, beta, margin):
    got = losses.simnpo(
        jnp.float32(nll), jnp.float32(length), beta=beta, margin=margin)
    want = unlearn_naive.simnpo(nll, length, beta, margin)
    self.assertAlmostEqual(float(got), want, places=4)

  def test_simnpo_depends_on_length(self):
    one, two = (losses.simnpo(jnp.float32(4), jnp.float32(n), beta=1.0)
                for n in (1, 2))
    self.assertLess(float(one), float(two))


class UnlikelihoodTest(parameterized.TestCase):

  @parameterized.parameters(0.01, 0.1, 0.693147, 3.0)
  def test_equals_the_formula(self, nll):
    got = float(losses.bounded_nll(jnp.float32(nll)))
    self.assertLess(
        abs(got / unlearn_naive.unlikelihood(nll) - 1), 2e-3)

  @parameterized.parameters(0.0, 1e-7, 1e-5, 1e-4)
  def test_a_certain_answer_is_pushed_hardest(self, nll):
    # Falling in nll everywhere: the surest answers have most to forget.
    self.assertTrue(np.isfinite(losses.bounded_nll(jnp.float32(nll))))
    slope = _gradient(losses.bounded_nll, nll)
    self.assertTrue(np.isfinite(slope))
    self.assertLess(slope, _gradient(losses.bounded_nll, 0.01))


if __name__ == '__main__':
  absltest.main()
