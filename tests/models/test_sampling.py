"""Cached decoding is the decoder, and samples have its distribution."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.models import decoder
from mansu_jax.models import sampling
from tests.models import tiny

_cached = jax.jit(decoder.forward_cached, static_argnums=0)


class CacheTest(parameterized.TestCase):

  @parameterized.parameters({}, {'num_kv_heads': 4}, {'num_kv_heads': 1})
  def test_token_by_token_equals_all_at_once(self, **changes):
    cfg = tiny.config(**changes)
    params, ids = tiny.params(cfg), tiny.tokens(cfg, batch=3, length=7)
    want = jax.jit(decoder.forward, static_argnums=0)(cfg, params, ids)
    cache = decoder.empty_cache(cfg, 3, 10)  # Longer than what it gets.
    for at in range(7):
      hidden, cache = _cached(cfg, params, ids[:, at], cache, at)
      np.testing.assert_allclose(hidden, want[:, at], rtol=1e-4, atol=1e-4)


class SampleTest(parameterized.TestCase):

  def test_prompts_stay_and_what_stands_behind_them_is_ignored(self):
    cfg = tiny.config()
    params, ids = tiny.params(cfg), tiny.tokens(cfg, batch=4, length=8)
    length = np.array([1, 3, 7, 8], np.int32)
    draw = lambda ids: np.asarray(sampling.sample(
        cfg, params, ids, length, jax.random.key(0)))
    got = draw(ids)
    for row, size in enumerate(length):
      np.testing.assert_array_equal(got[row, :size], ids[row, :size])
    behind = np.arange(8) >= length[:, None]
    np.testing.assert_array_equal(draw(np.where(behind, 0, ids)), got)
    self.assertGreater((got != ids)[behind].mean(), 0.5)

  @parameterized.parameters(1.0, 0.5)
  def test_draws_follow_the_models_own_distribution(self, temperature):
    cfg = tiny.config()
    params, rows = tiny.params(cfg, scale=0.2), 4000
    ids = np.tile(np.array([[5, 9, 0, 0]], np.int32), (rows, 1))
    got = np.asarray(sampling.sample(
        cfg, params, jnp.asarray(ids), jnp.full(rows, 2), jax.random.key(1),
        temperature))
    first, count = np.unique(got[:, 2], return_counts=True)
    common = first[count.argmax()]
    for prompt, drawn in (
        ([5, 9], got[:, 2]), ([5, 9, common], got[got[:, 2] == common, 3])):
      want = jax.nn.softmax(tiny.logits(
          cfg, params, np.array([prompt], np.int32))[0, -1] / temperature)
      share = np.bincount(drawn, minlength=cfg.vocab_size) / drawn.size
      spread = np.sqrt(want * (1 - want) / drawn.size)
      self.assertLess(np.max(np.abs(share - want) / (spread + 1e-4)), 5)
      self.assertGreater(np.max(want), 0.02)  # Not a flat one.

  def test_repeats_by_its_key(self):
    cfg = tiny.config()
    params, ids = tiny.params(cfg), tiny.tokens(cfg, batch=6, length=12)
    draw = lambda seed: np.asarray(sampling.sample(
        cfg, params, ids, np.ones(6, np.int32), jax.random.key(seed)))
    np.testing.assert_array_equal(draw(3), draw(3))
    self.assertTrue((draw(3) != draw(4)).any())


if __name__ == '__main__':
  absltest.main()
