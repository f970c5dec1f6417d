"""Faithfulness of circuits of edges against patched runs by hand."""

import dataclasses

from absl.testing import absltest
import numpy as np

from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edge_faithfulness
from mansu_jax.circuits.edges import edge_patching
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges
from tests.circuits import small

_CONFIG = small.config()
_REAL = edges.is_edge(_CONFIG)
_NONE = np.zeros_like(_REAL)


class EdgeFaithfulnessTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = small.params(_CONFIG)
    cls.pairs = small.elicited(_CONFIG, cls.params)
    (cls.batch,) = pair_batches.pack(cls.pairs, 3)

  def _measure(self, never_patched=_NONE, batch=None):
    return edge_faithfulness.of_edges(
        _CONFIG, self.params, [batch or self.batch], never_patched)

  def _metric(self, patched):
    reference = edge_patching.corrupted(_CONFIG, self.params, self.batch)
    return edge_patching.metric(
        _CONFIG, self.params, self.batch, reference, patched).sum()

  def test_equals_patched_runs(self):
    rng = np.random.default_rng(0)
    corrupt, clean = self._metric(_REAL), self._metric(_NONE)
    outside = edge_select.outside_range(_CONFIG, range(1, 2))
    for never_patched in (_NONE, outside):
      chosen = _REAL & ~never_patched & (rng.random(_REAL.shape) < 0.5)
      want = (self._metric(~(chosen | never_patched)) - corrupt) / (
          clean - corrupt)
      self.assertGreater(min(abs(want), abs(want - 1)), 1e-3)
      self.assertAlmostEqual(
          self._measure(never_patched)(chosen), want, delta=1e-5)

  def test_all_edges_give_1_and_no_edges_give_0(self):
    measure = self._measure()
    self.assertEqual(measure(_REAL), 1.0)
    self.assertEqual(measure(_NONE), 0.0)
    never_patched = edge_select.outside_range(_CONFIG, range(1, 2))
    measure = self._measure(never_patched)
    self.assertEqual(measure(_REAL & ~never_patched), 1.0)
    # Every input of the logits is patched for any range of layers.
    self.assertAlmostEqual(measure(_NONE), 0.0, delta=1e-4)

  def test_batches_add_up(self):
    chosen = _REAL & (np.random.default_rng(2).random(_REAL.shape) < 0.5)
    batches = pair_batches.pack(self.pairs, 2)  # The last one is filled up.
    self.assertEqual([b.weight.sum() for b in batches], [2, 1])
    got = edge_faithfulness.of_edges(
        _CONFIG, self.params, batches, _NONE)
    want = self._measure()
    np.testing.assert_allclose(
        got.metrics(chosen), want.metrics(chosen), atol=1e-5)
    self.assertAlmostEqual(got(chosen), want(chosen), delta=1e-5)

  def test_pairs_of_weight_zero_do_not_count(self):
    chosen = _REAL & (np.random.default_rng(1).random(_REAL.shape) < 0.5)
    less = self.batch._replace(weight=np.array([1, 1, 0], np.float32))
    (two,) = pair_batches.pack(self.pairs[:2], 2)
    self.assertAlmostEqual(
        self._measure(batch=less)(chosen), self._measure(batch=two)(chosen),
        delta=1e-5)

  def test_pairs_of_the_same_prompts(self):
    (batch,) = pair_batches.pack([dataclasses.replace(
        p, corrupt_ids=p.clean_ids) for p in self.pairs], 3)
    with self.assertRaisesRegex(ValueError, 'first 3 pairs .*--circuit_pairs'):
      self._measure(batch=batch)(_REAL)


if __name__ == '__main__':
  absltest.main()
