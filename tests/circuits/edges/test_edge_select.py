"""Rankings of edges, pruning and random circuits: by hand, and connected."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges
from tests.circuits import small


def _values(cfg, seed=0):
  real = edges.is_edge(cfg)
  drawn = np.random.default_rng(seed).uniform(size=real.shape)
  return np.where(real, drawn, 0)


def _layer_of(target):
  """The layer of a target's name, None of the logits."""
  return None if target == 'logits' else int(target[1:].split('.')[0])


def _whole(cfg):
  """The range of all layers, all its edges, and the none that it leaves."""
  layers = range(cfg.num_layers)
  real = edges.is_edge(cfg)
  return layers, real, np.zeros_like(real)


def _chosen(cfg, order, size):
  values = _values(cfg)
  return edge_select.prefix(values, order, size).chosen


class CandidatesTest(parameterized.TestCase):

  @parameterized.parameters((0, 3), (1, 3), (1, 2))
  def test_layer_range_limits_targets_of_edges(self, start, stop):
    cfg, _ = small.with_edge_index(num_layers=3)
    real, layers = edges.is_edge(cfg), range(start, stop)
    names = edges.target_names(cfg)
    got = edge_select.candidates(_values(cfg), cfg, layers, 1.0)
    never_patched = edge_select.outside_range(cfg, layers)
    for place, name in enumerate(names):
      within = name == 'logits' or _layer_of(name) in layers
      np.testing.assert_array_equal(
          got[:, place], real[:, place] & within, name)
      np.testing.assert_array_equal(
          never_patched[:, place], real[:, place] & (not within), name)
    self.assertEqual(
        edge_select.num_candidates(cfg, layers, 1.0), got.sum())

  @parameterized.parameters(0.001, 0.3, 0.5)
  def test_a_cap_keeps_the_best_into_each_layer(self, cap):
    cfg, _ = small.with_edge_index(num_layers=3)
    values, layers = _values(cfg), range(1, 3)
    got = edge_select.candidates(values, cfg, layers, cap)
    for layer in layers:
      into = np.zeros_like(got)
      for place, name in enumerate(edges.target_names(cfg)):
        if _layer_of(name) == layer:
          into[:, place] = edges.is_edge(cfg)[:, place]
      limit = max(1, int(cap * into.sum()))
      self.assertEqual((got & into).sum(), limit)
      self.assertGreater(
          values[got & into].min(), values[into & ~got].max())
    self.assertTrue(got[:, -1].all())
    self.assertEqual(
        edge_select.num_candidates(cfg, layers, cap), got.sum())

  def test_scores_of_another_model(self):
    cfg, _ = small.with_edge_index()
    with self.assertRaisesRegex(ValueError, 'sources by targets'):
      edge_select.candidates(np.ones((2, 2)), cfg, range(2), 1.0)


class RankTest(parameterized.TestCase):

  @parameterized.parameters(1, 7, 25)
  def test_rank_top_selects_the_largest_scores(self, size):
    cfg, _ = small.with_edge_index()
    values, (_, real, _) = _values(cfg), _whole(cfg)
    chosen = _chosen(cfg, edge_select.rank_top(values, real), size)
    self.assertEqual(chosen.sum(), size)
    self.assertGreaterEqual(
        values[chosen].min(), values[real & ~chosen].max(initial=0))

  def test_greedy_by_hand(self):
    cfg, at = small.with_edge_index()
    values, (_, real, never_patched) = np.zeros_like(_values(cfg)), _whole(cfg)
    values[at('m1', 'logits')] = 1
    values[at('input', 'a0.h0<q>')] = 9  # Not reached before a0.h0 is.
    values[at('a0.h0', 'm1')] = 5
    values[at('a0.h1', 'm0')] = 8  # m0 is not reached before long.
    values[at('input', 'm1')] = 0.5
    order = edge_select.rank_greedy(values, real, never_patched, cfg)
    self.assertEqual(
        [*zip(*np.unravel_index(order[:4], real.shape))],
        [at('m1', 'logits'), at('a0.h0', 'm1'), at('input', 'a0.h0<q>'),
         at('input', 'm1')])

  def test_greedy_paths_cross_layers_outside_the_range(self):
    cfg, at = small.with_edge_index()
    values, layers = np.zeros_like(_values(cfg)), range(0, 1)
    values[at('a1.h1', 'logits')] = 2
    values[at('input', 'm0')] = 1  # m0 feeds a1.h1, whatever the circuit.
    allowed = edge_select.candidates(values, cfg, layers, 1.0)
    never_patched = edge_select.outside_range(cfg, layers)
    order = edge_select.rank_greedy(values, allowed, never_patched, cfg)
    self.assertCountEqual(order, np.flatnonzero(allowed))
    chosen = edge_select.prefix(values, order, 2)
    self.assertCountEqual(
        map(tuple, np.argwhere(chosen.chosen)),
        [at('a1.h1', 'logits'), at('input', 'm0')])
    np.testing.assert_array_equal(
        edge_select.prune(chosen, never_patched, cfg).chosen, chosen.chosen)
    pruned = edge_select.prune(chosen, np.zeros_like(never_patched), cfg)
    self.assertEqual(pruned.size, 0)

  def test_greedy_may_stop_early(self):
    cfg, _ = small.with_edge_index()
    values, (_, real, never_patched) = _values(cfg), _whole(cfg)
    order = edge_select.rank_greedy(values, real, never_patched, cfg)
    for most in (0, 7, order.size, order.size + 5):
      np.testing.assert_array_equal(
          edge_select.rank_greedy(values, real, never_patched, cfg, most),
          order[:most])

  @parameterized.parameters(5, 20)
  def test_greedy_edges_lead_to_the_logits(self, size):
    cfg, _ = small.with_edge_index()
    _, real, never_patched = _whole(cfg)
    chosen = _chosen(cfg, edge_select.rank_greedy(
        _values(cfg), real, never_patched, cfg), size)
    self.assertEqual(chosen.sum(), size)
    owner, feeds = edge_circuit.owners(cfg), chosen.any(1)
    for target in np.flatnonzero(chosen.any(0)):
      self.assertTrue(owner[target] == -1 or feeds[owner[target]])

  def test_every_edge_is_ranked_once(self):
    cfg, _ = small.with_edge_index()
    values, (_, real, never_patched) = _values(cfg), _whole(cfg)
    for order in (edge_select.rank_top(values, real),
                  edge_select.rank_greedy(values, real, never_patched, cfg)):
      self.assertCountEqual(order, np.flatnonzero(real))
    self.assertEqual(_chosen(cfg, order, 0).sum(), 0)


class PruneTest(absltest.TestCase):

  def test_by_hand(self):
    cfg, at = small.with_edge_index()
    _, real, never_patched = _whole(cfg)
    chosen = np.zeros_like(real)
    kept = [at('input', 'a0.h1<v>'), at('a0.h1', 'm1'), at('m1', 'logits')]
    for edge in (*kept, at('input', 'm0'), at('a0.h0', 'a1.h0<k>'),
                 at('a1.h0', 'logits')):
      chosen[edge] = True
    got = edge_select.prune(
        edge_circuit.EdgeCircuit(chosen, _values(cfg)), never_patched, cfg)
    self.assertCountEqual(map(tuple, np.argwhere(got.chosen)), kept)
    names = np.array(edges.source_names(cfg))
    self.assertEqual(
        names[edge_circuit.nodes(got, cfg)].tolist(), ['input', 'a0.h1', 'm1'])

  def test_all_edges_are_connected(self):
    cfg, _ = small.with_edge_index()
    _, real, never_patched = _whole(cfg)
    whole = edge_circuit.EdgeCircuit(real, _values(cfg))
    np.testing.assert_array_equal(
        edge_select.prune(whole, never_patched, cfg).chosen, real)


class PermuteTest(absltest.TestCase):

  def test_values_stay_in_their_layer(self):
    cfg = small.config(num_layers=3)
    real, values = edges.is_edge(cfg), _values(cfg)
    got = edge_select.permute(values, cfg, np.random.default_rng(0))
    np.testing.assert_array_equal(got[~real], values[~real])
    self.assertGreater((got != values)[real].mean(), 0.9)
    for stop in range(4):  # The layers, then the logits.
      part = np.zeros_like(real)
      for place, name in enumerate(edges.target_names(cfg)):
        if (3 if name == 'logits' else _layer_of(name)) == stop:
          part[:, place] = real[:, place]
      self.assertCountEqual(got[part], values[part])


if __name__ == '__main__':
  absltest.main()
