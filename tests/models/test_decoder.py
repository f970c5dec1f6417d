"""The decoder against loops, golden values and itself."""

import math
import os
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.models import decoder
from mansu_jax.models import places
from mansu_jax.models import sites as sites_lib
from mansu_jax.models.io import loading
from tests.models import tiny
from tests.reference import decoder_naive

Site = sites_lib.Site

_GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
_NO_GOLDEN = 'the golden values are not beside this checkout'


class ForwardTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('grouped', {}),
      ('full', {'num_kv_heads': 4}),
      ('single', {'num_kv_heads': 1, 'tie_embeddings': False}),
      ('windows', {'windows': (3, 0, 2)}), ('bias', {'qkv_bias': True}),
      ('qk_norm', {'qk_norm': True, 'norm_eps': 0.1}))
  def test_logits_and_sites_equal_loops(self, changes):
    cfg = tiny.config(**changes)
    weights, ids = tiny.params(cfg), tiny.tokens(cfg)
    hidden, taps = jax.jit(
        lambda w, t: decoder.forward_with_taps(cfg, w, t, sites=list(Site)))(
            weights, ids)
    logits = decoder.unembed(cfg, weights, hidden)
    for row in range(len(ids)):
      want, want_sites = decoder_naive.forward(
          ids[row], jax.tree.map(np.asarray, weights),
          theta=cfg.rope_theta, eps=cfg.norm_eps, windows=cfg.windows)
      np.testing.assert_allclose(logits[row], want, rtol=1e-4, atol=1e-4)
      for site in Site:
        np.testing.assert_allclose(
            taps[site][:, row], want_sites[site], rtol=1e-4, atol=1e-4)

  @absltest.skipUnless(os.path.isdir(_GOLDEN), _NO_GOLDEN)
  def test_golden_llama(self):
    model = loading.load(_GOLDEN / 'eap_tiny_llama')
    want = np.load(_GOLDEN / 'eap_tiny_llama' / 'scores.npz')
    got = tiny.logits(model.config, model.params, want['clean_tokens'])
    np.testing.assert_allclose(got, want['logits_clean'], rtol=0, atol=1e-4)
    self.assertIsNone(model.tokenizer)

  def test_jit_remat_and_embeddings_change_nothing(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg)
    want = decoder.forward(cfg, weights, ids)
    fn = jax.jit(decoder.forward, static_argnums=0, static_argnames='remat')
    kwargs = {'embeddings': decoder.embed(cfg, weights, ids)}
    for got in (fn(cfg, weights, ids), fn(cfg, weights, ids, remat=True),
                fn(cfg, weights, **kwargs)):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

  def test_remat_gives_the_same_gradient(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg)
    loss = lambda w, remat: jnp.square(
        decoder.forward(cfg, w, ids, remat=remat)).sum()
    grads = [jax.jit(jax.grad(loss), static_argnums=1)(weights, remat)
             for remat in (False, True)]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        *grads)

  def test_packed_row_equals_separate_rows(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg, batch=1, length=8)
    segments = np.array([[4, 4, 4, 2, 2, 2, 2, 2]])
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 4]])
    got = tiny.logits(
        cfg, weights, ids, positions=positions, segments=segments)
    want = [tiny.logits(cfg, weights, ids[:, s]) for s in (
        slice(0, 3), slice(3, 8))]
    np.testing.assert_allclose(
        got, np.concatenate(want, axis=1), rtol=1e-5, atol=1e-5)

  def test_a_token_sees_its_own_segment_up_to_itself(self):
    got = places.packed(
        np.array([[0, 1, 0, 1, 0]]), np.array([[4, 4, 2, 2, -1]]))
    np.testing.assert_array_equal(got[0], [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0],
        [0, 0, 0, 0, 1]])

  def test_a_mask_and_segments_are_refused(self):
    cfg = tiny.config()
    ids = tiny.tokens(cfg, batch=1, length=4)
    with self.assertRaisesRegex(ValueError, 'an attention mask and segments'):
      decoder.forward(cfg, tiny.params(cfg), ids, segments=ids,
                      attention_mask=np.ones((1, 4, 4), bool))

  @parameterized.parameters(0, 1, 2, 3)
  def test_a_run_in_two_parts_equals_one(self, layer):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg, batch=1, length=8)
    packed = {'segments': np.array([[0, 0, 0, 1, 1, 1, 1, 1]]),
              'positions': np.array([[0, 1, 2, 0, 1, 2, 3, 4]])}
    x = decoder.run_prefix(cfg, weights, ids, layer=layer, **packed)
    got = decoder.forward(
        cfg, weights, embeddings=x, first_layer=layer, **packed)
    want = decoder.forward(cfg, weights, ids, **packed)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)

  def test_bfloat16_compute_is_near_and_logits_stay_float32(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg, scale=0.1), tiny.tokens(cfg)
    want = decoder.forward(cfg, weights, ids)
    got = decoder.forward(cfg, weights, ids, dtype=jnp.bfloat16)
    self.assertEqual(got.dtype, jnp.bfloat16)
    self.assertEqual(decoder.unembed(cfg, weights, got).dtype, jnp.float32)
    self.assertLess(
        np.linalg.norm(got - want) / np.linalg.norm(want), 0.03)

  def test_neither_or_both_inputs_are_refused(self):
    cfg = tiny.config()
    weights = tiny.params(cfg)
    with self.assertRaisesRegex(ValueError, 'neither of tokens and embedd'):
      decoder.forward(cfg, weights)
    with self.assertRaisesRegex(ValueError, 'both of tokens and embeddings'):
      decoder.forward(cfg, weights, tiny.tokens(cfg),
                      embeddings=jnp.zeros((2, 9, cfg.d_model)))

  def test_an_8b_model_has_the_published_size(self):
    cfg = tiny.config(
        vocab_size=128_256, d_model=4096, num_layers=32, num_heads=32,
        num_kv_heads=8, d_head=128, d_ff=14_336, tie_embeddings=False)
    shapes = jax.tree.leaves(decoder.abstract(cfg))
    self.assertEqual(sum(a.size for a in shapes), 8_030_261_248)
    self.assertEqual({a.dtype for a in shapes}, {np.dtype('float32')})

  def test_init_matches_abstract_and_is_near_uniform(self):
    cfg = tiny.config(tie_embeddings=False)
    made = jax.jit(decoder.init, static_argnums=0)(cfg, jax.random.key(0))
    self.assertEqual(
        jax.tree.map(lambda a: (a.shape, a.dtype), made),
        jax.tree.map(lambda a: (a.shape, a.dtype), decoder.abstract(cfg)))
    np.testing.assert_allclose(
        made['layers']['mlp']['up'].std(axis=(1, 2)), 0.02, rtol=0.1)
    logprob = jax.nn.log_softmax(tiny.logits(cfg, made, tiny.tokens(cfg)))
    np.testing.assert_allclose(
        -logprob.mean(), math.log(cfg.vocab_size), rtol=0.05)


class TapsTest(parameterized.TestCase):

  @pytest.mark.medium
  def test_perturbation_gradient_is_the_gradient_at_the_site(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg)

    def metric(deltas):
      hidden, taps = decoder.forward_with_taps(
          cfg, weights, ids, sites=list(Site), perturbations=deltas)
      return decoder.unembed(cfg, weights, hidden)[:, -1, 3].sum(), taps

    taps = jax.eval_shape(metric, None)[1]
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape), taps)
    run = jax.jit(lambda deltas: metric(deltas)[0])
    grads = jax.jit(jax.grad(run))(zeros)
    for site in Site:
      # The steepest direction: the slope along it is the gradient's norm.
      norm = np.linalg.norm(grads[site])
      step = 0.02 * grads[site] / norm
      slope = (run(zeros | {site: step}) - run(zeros | {site: -step})) / 0.04
      np.testing.assert_allclose(slope, norm, rtol=0.02)

  @pytest.mark.medium
  def test_perturbed_site_acts_and_the_others_get_a_zero(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg)
    base = decoder.forward(cfg, weights, ids)
    run = lambda delta: decoder.forward_with_taps(
        cfg, weights, ids, sites=[Site.MLP_OUT, Site.RESIDUAL],
        perturbations={Site.MLP_OUT: delta})[0]
    shape = (cfg.num_layers, *base.shape)
    np.testing.assert_allclose(run(jnp.zeros(shape)), base, atol=1e-6)
    self.assertGreater(np.abs(run(jnp.ones(shape)) - base).max(), 0.1)

  def test_taps_are_free_when_off(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg)
    text = lambda fn: jax.jit(fn).lower(weights, ids).as_text()
    plain = lambda w, t: decoder.Decoder(cfg).apply({'params': w}, t)
    listed = lambda w, t: decoder.Decoder(cfg, sites=tuple(Site)).apply(
        {'params': w}, t)
    off = lambda w, t: decoder.forward_with_taps(cfg, w, t, sites=[])[0]
    strip = lambda t: t.replace('<lambda>', '').replace('off', '')
    self.assertEqual(strip(text(off)), strip(text(plain)))
    # Even listed sites cost nothing when no collection asks for them.
    self.assertEqual(strip(text(listed)), strip(text(plain)))

  def test_unknown_and_unlisted_sites_are_refused(self):
    cfg = tiny.config()
    weights, ids = tiny.params(cfg), tiny.tokens(cfg)
    with self.assertRaisesRegex(ValueError, "Unknown tap sites .'logits'."):
      decoder.forward_with_taps(cfg, weights, ids, sites=['logits'])
    with self.assertRaisesRegex(ValueError, 'Perturbations at .*Add them'):
      decoder.forward_with_taps(
          cfg, weights, ids, sites=[Site.MLP_OUT],
          perturbations={Site.ATTN_OUT: 0})


if __name__ == '__main__':
  absltest.main()
