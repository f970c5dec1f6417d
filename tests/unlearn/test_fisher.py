"""Diagonal Fisher: squares of single gradients, not of their mean."""

import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.config import run as run_config
from mansu_jax.models import decoder
from mansu_jax.stages.train import training
from mansu_jax.unlearn import batches
from mansu_jax.unlearn import fisher
from tests.circuits import small
from tests.reference import circuit_naive
from tests.reference import unlearn_naive
from tests.unlearn import problem


def _log_prob(theta, frozen, example):
  """Logistic regression with a scale in `frozen`."""
  x, y = example
  return jax.nn.log_sigmoid(y * frozen['scale'] * (x @ theta['w']))


class DiagonalFisherTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x = rng.normal(size=(7, 5)).astype(np.float32)
    self.y = np.where(rng.random(7) < 0.5, -1, 1).astype(np.float32)
    self.theta = {'w': jnp.asarray(rng.normal(size=5), jnp.float32)}
    self.frozen = {'scale': jnp.float32(1.5)}

  def _fisher(self, chunk=4, theta=None):
    return fisher.diagonal_fisher(
        _log_prob, theta or self.theta, self.frozen, (self.x, self.y),
        chunk=chunk)['w']

  def _gradient(self, example):
    """By hand: d log sigmoid(y s x.w) / dw = y s sigmoid(-y s x.w) x."""
    x, y = np.float64(example[0]), float(example[1])
    z = y * 1.5 * (x @ np.float64(self.theta['w']))
    return y * 1.5 / (1 + np.exp(z)) * x

  def _examples(self):
    return list(zip(self.x, self.y))

  @parameterized.parameters(1, 2, 7, 16)
  def test_equals_the_loop_whatever_the_chunk(self, chunk):
    want = unlearn_naive.squared_gradients(self._gradient, self._examples())
    np.testing.assert_allclose(self._fisher(chunk), want, rtol=1e-5)

  def test_is_not_the_square_of_the_mean(self):
    wrong = np.square(np.mean(
        [self._gradient(e) for e in self._examples()], axis=0))
    self.assertTrue(np.all(self._fisher() > 1.1 * wrong))

  def test_is_float32_and_not_negative_for_bfloat16(self):
    half = {'w': self.theta['w'].astype(jnp.bfloat16)}
    got = self._fisher(theta=half)
    self.assertEqual(got.dtype, jnp.float32)
    np.testing.assert_allclose(got, self._fisher(), rtol=0.1)

  def test_no_examples_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'over 0 examples.*--data_retain'):
      fisher.diagonal_fisher(
          _log_prob, self.theta, self.frozen,
          (np.zeros((0, 5)), np.zeros(0)), chunk=4)


class DrawLabelsTest(absltest.TestCase):

  def test_labels_follow_the_model(self):
    logits = jnp.log(jnp.array([0.1, 0.2, 0.7]))
    got = fisher.draw_labels(
        jax.random.key(0), jnp.tile(logits, (50, 80, 1)))
    self.assertEqual(got.shape, (50, 80))
    shares = np.bincount(got.ravel(), minlength=3) / got.size
    np.testing.assert_allclose(shares, [0.1, 0.2, 0.7], atol=0.03)


class PredictedKlTest(absltest.TestCase):

  def test_by_hand(self):
    got = fisher.predicted_kl(
        {'a': jnp.array([2.0, 1.0]), 'b': {'c': jnp.array([[4.0]])}},
        {'a': jnp.array([0.5, -3.0]), 'b': {'c': jnp.array([[0.1]])}})
    self.assertAlmostEqual(float(got), 0.5 * (0.5 + 9 + 0.04), places=5)

  @pytest.mark.medium
  def test_tends_to_the_kl_of_a_small_step_with_labels_of_the_model(self):
    # One coin with logit theta: KL(theta, theta + d) ~ p (1 - p) d^2 / 2.
    theta = {'w': jnp.array([0.8])}
    labels = fisher.draw_labels(
        jax.random.key(1), jnp.tile(jnp.array([0.0, 0.8]), (4000, 1)))
    log_prob = lambda t, frozen, y: jnp.where(
        y > 0, jax.nn.log_sigmoid(t['w'][0]), jax.nn.log_sigmoid(-t['w'][0]))
    f = fisher.diagonal_fisher(log_prob, theta, {}, labels, chunk=500)
    got = float(fisher.predicted_kl(f, {'w': jnp.array([0.05])}))
    want = unlearn_naive.kl([0.0, 0.8], [0.0, 0.85])
    self.assertLess(abs(got / want - 1), 0.05)


class CircuitFisherTest(parameterized.TestCase):
  """The stage, on a decoder: padding is masked, slices are the circuit's."""

  def _run(self, even=None, **options):
    spans = problem.spans(problem.hidden_of_model(), *problem.FORGET)
    pad = ((0, 0), (0, 5))  # More padding than is needed, full of junk.
    spans = spans._replace(
        tokens=np.pad(spans.tokens, pad, constant_values=7),
        where=np.pad(spans.where, pad), labels=np.pad(spans.labels, pad),
        weight=np.pad(spans.weight, pad),
        reference=np.pad(spans.reference, (*pad, (0, 0))))
    options = run_config.FisherConfig(**options)
    made = types.SimpleNamespace(retain=batches.Pool(
        spans=spans, sampler=None, even=even or spans.length.size))
    return training.circuit_fisher(
        options, problem.circuit_edit(), training.fisher_spans(
            options, made, seed=0), seed=0)

  @pytest.mark.medium
  def test_equals_the_loop_over_sequences_by_themselves(self):
    params = problem.model().params

    @jax.jit
    def gradient(params, tokens, mask):
      def log_prob(params):
        logits = decoder.unembed(problem.CONFIG,
            params, decoder.forward(problem.CONFIG, params, tokens[None]))[0]
        log_p = jax.nn.log_softmax(logits[:-1])
        picked = log_p[jnp.arange(len(tokens) - 1), tokens[1:]]
        return jnp.sum(picked * mask[:-1])
      return jax.grad(log_prob)(params)

    total = None
    for tokens, mask in zip(*problem.FORGET):
      square = jax.tree.map(
          lambda g: np.square(np.float64(g)), gradient(params, tokens, mask))
      total = square if total is None else jax.tree.map(
          np.add, total, square)
    want = circuit_naive.gather(
        jax.tree.map(lambda x: x / 3, total),
        small.members(small.circuit(problem.CONFIG)))
    got = self._run(chunk=2)['layers']
    for (module, leaf), value in want.items():
      np.testing.assert_allclose(
          got[module][leaf], value, rtol=2e-3, atol=1e-5 * value.max(),
          err_msg=leaf)

  def test_circuit_fisher_omits_near_sequences(self):
    seen = []
    def keep(log_prob, theta, frozen, examples, *, chunk):
      seen.append(examples.tokens)
    with mock.patch.object(fisher, 'diagonal_fisher', keep):
      self._run(even=2)
    tokens = problem.FORGET[0][:2]
    self.assertLen(seen[0], 2)
    np.testing.assert_array_equal(seen[0][:, :3], tokens[:, :3])

  def test_labels_are_those_of_the_data_or_drawn_from_the_base(self):
    seen = []
    def keep(log_prob, theta, frozen, examples, *, chunk):
      seen.append((examples, chunk))
    with mock.patch.object(fisher, 'diagonal_fisher', keep):
      self._run(labels='data', chunk=3)
      self._run(labels='model', chunk=3)
    (data, chunk), (model, _) = seen
    self.assertEqual(chunk, 3)
    tokens, mask = problem.FORGET
    np.testing.assert_array_equal(
        data.labels[data.weight > 0], tokens[:, 1:][mask[:, :-1]])
    logits = decoder.unembed(
        problem.CONFIG, problem.model().params, data.reference)
    np.testing.assert_array_equal(
        model.labels, fisher.draw_labels(jax.random.key(0), logits))
    self.assertTrue(np.any(model.labels != data.labels))


if __name__ == '__main__':
  absltest.main()
