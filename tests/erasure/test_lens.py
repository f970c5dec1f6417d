"""Hidden states at the ends of prompts, and linear lenses on them."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.erasure import lens
from mansu_jax.erasure import readability
from mansu_jax.models import decoder
from mansu_jax.models import layers
from tests.circuits import small

_CONFIG = small.config()
_PARAMS = small.params(_CONFIG)
_forward = jax.jit(functools.partial(decoder.forward, _CONFIG))


def _prompts(lengths=(4, 9, 1, 8), seed=0):
  rng = np.random.default_rng(seed)
  return [rng.integers(0, 29, n).tolist() for n in lengths]


class StatesTest(parameterized.TestCase):

  def test_states_equal_single_prompt_runs(self):
    prompts = _prompts([1, 5, 12, 19] * 32)  # More than a batch of rows.
    got = lens.states(_CONFIG, _PARAMS, prompts)
    self.assertEqual(got.layers.shape, (128, 3, 16))
    for i in (0, 1, 2, 3, 62, 63, 126, 127):
      prompt = prompts[i]
      hidden = _forward(_PARAMS, np.array([prompt]))
      np.testing.assert_allclose(got.final[i], hidden[0, -1], atol=1e-5)
      np.testing.assert_array_equal(
          got.layers[i, 0], _PARAMS['embed'][prompt[-1]])
    normed = layers.norm(_CONFIG, _PARAMS, 'final_norm', got.layers[:, -1])
    np.testing.assert_allclose(normed, got.final, atol=1e-5)

  def test_last_state_is_the_input_of_the_last_mlp(self):
    got = lens.states(_CONFIG, _PARAMS, _prompts())
    weights = jax.tree.map(lambda w: w[-1], _PARAMS['layers'])
    mlp, x = weights['mlp'], layers.norm(
        _CONFIG, weights, 'mlp_norm', got.last)
    out = (jax.nn.silu(x @ mlp['gate']) * (x @ mlp['up'])) @ mlp['down']
    np.testing.assert_allclose(
        got.last + out, got.layers[:, -1], rtol=1e-5, atol=1e-5)

  def test_a_prompt_longer_than_a_row(self):
    prompts = _prompts((3, 70))
    got = lens.states(_CONFIG, _PARAMS, prompts)
    hidden = _forward(_PARAMS, np.array([prompts[1]]))
    np.testing.assert_allclose(got.final[1], hidden[0, -1], atol=1e-5)

  def test_take(self):
    got = lens.states(_CONFIG, _PARAMS, _prompts())
    np.testing.assert_array_equal(got.take([2, 0]).final, got.final[[2, 0]])
    self.assertLen(got.take(slice(1, None)).layers, 3)


class UpperLayersTest(parameterized.TestCase):

  @parameterized.parameters(0, 1, 2)
  def test_upper_layers_equal_full_runs(self, common):
    prompts = _prompts([1, 5, 12, 19] * 32)
    other = small.params(_CONFIG, seed=1)
    if common:
      other['embed'] = _PARAMS['embed']
    other['layers'] = jax.tree.map(
        lambda a, b: np.concatenate([a[:common], b[common:]]),
        _PARAMS['layers'], other['layers'])
    above = lens.UpperLayers(_CONFIG, prompts, common)
    for params in (_PARAMS, other):
      np.testing.assert_allclose(
          above(params), lens.states(_CONFIG, params, prompts).final,
          atol=1e-5)

  def test_shared_layers_run_once(self):
    above = lens.UpperLayers(_CONFIG, _prompts(), 1)
    want = above(_PARAMS)
    nan = _PARAMS | {'embed': np.full_like(_PARAMS['embed'], np.nan)}
    np.testing.assert_array_equal(above(nan), want)


class PredictTest(parameterized.TestCase):

  @parameterized.parameters(5, 40)  # Fewer and more than coordinates.
  def test_is_ridge_regression(self, num):
    rng = np.random.default_rng(0)
    train, target, test = (
        rng.normal(size=(n, d)) + 3 for n, d in ((num, 8), (num, 6), (4, 8)))
    got = lens.predict(train, target, test, ridge=0.1)
    x, y = train - train.mean(0), target - target.mean(0)
    penalty = 0.1 * num * np.mean(x**2)
    weights = np.linalg.solve(x.T @ x + penalty * np.eye(8), x.T @ y)
    want = (test - train.mean(0)) @ weights + target.mean(0)
    np.testing.assert_allclose(got, want, rtol=1e-9)

  def test_equal_states_predict_the_mean(self):
    got = lens.predict(np.ones((4, 3)), np.arange(8.0).reshape(4, 2),
                       np.ones((1, 3)))
    np.testing.assert_allclose(got, [[3.0, 4.0]])


class ReadTest(absltest.TestCase):

  def _world(self, hide_from):
    """60 facts; from layer 1 on the state is the rotated answer."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(60, 12))
    answers = rng.integers(0, 60, 90)
    turned = np.linalg.qr(rng.normal(size=(12, 12)))[0]
    noise = rng.normal(size=(90, 12))
    states = np.stack([noise] + [
        noise if hide_from is not None and layer >= hide_from
        else 3 * table[answers] @ turned for layer in (1, 2, 3)], 1)
    fit = lens.States(states[:50], None, table[answers[:50]])
    says = table[(answers[50:] + 7) % 60]  # The first of the wrong ones.
    wrong = (answers[50:, None] + [[7, 23, 41]]) % 60
    choices = np.concatenate([wrong, answers[50:, None]], 1)
    return fit, lens.States(states[50:], None, says), table, choices

  def _read(self, hide_from):
    fit, asked, table, choices = self._world(hide_from)
    return readability.picks(
        lens.read(fit, asked, table, np.arange(60)), choices)

  def test_read_recovers_rotated_answers_in_the_middle_layers(self):
    got = np.equal(self._read(None), 3).mean(1)
    self.assertLess(got[0], 0.5)
    np.testing.assert_array_equal(got[1:3], 1.0)

  def test_the_last_layer_reads_as_the_models_answer(self):
    np.testing.assert_array_equal(self._read(None)[-1], 0)
    _, asked, table, choices = self._world(None)
    np.testing.assert_array_equal(lens.says(asked.final, table, choices), 0)

  def test_an_answer_hidden_late_is_read_in_earlier_layers(self):
    got = np.equal(self._read(2), 3).mean(1)
    self.assertEqual(got[1], 1.0)
    self.assertLess(got[2], 0.5)

  def test_read_scores_a_subset_of_tokens(self):
    fit, asked, table, _ = self._world(None)
    every = lens.read(fit, asked, table, np.arange(60))
    np.testing.assert_allclose(
        lens.read(fit, asked, table, np.array([3, 50])), every[..., [3, 50]],
        rtol=1e-5)


if __name__ == '__main__':
  absltest.main()
