"""Circuits of edges: by hand, connected, and as files."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits import edge_circuit
from mansu_jax.circuits import edges
from tests.circuits import small


def _setup(**changes):
  cfg = small.config(num_heads=2, num_kv_heads=1, d_head=8, **changes)
  place = lambda source, target: (
      edges.source_names(cfg).index(source),
      edges.target_names(cfg).index(target))
  return cfg, place


def _scores(cfg, seed=0):
  real = edges.is_edge(cfg)
  drawn = np.random.default_rng(seed).normal(size=real.shape)
  return np.where(real, drawn, 0).astype(np.float32)


class SelectTest(parameterized.TestCase):

  @parameterized.parameters(1, 7, 25)
  def test_top_is_of_the_largest(self, size):
    cfg, _ = _setup()
    scores = _scores(cfg)
    got = edge_circuit.top(scores, cfg, size)
    self.assertEqual(got.size, size)
    self.assertGreaterEqual(
        np.abs(scores[got.chosen]).min(),
        np.abs(scores[edges.is_edge(cfg) & ~got.chosen]).max(initial=0))

  def test_greedy_by_hand(self):
    cfg, at = _setup()
    scores = np.zeros_like(_scores(cfg))
    scores[at('m1', 'logits')] = 1
    scores[at('input', 'a0.h0<q>')] = 9  # Not reached before a0.h0 is.
    scores[at('a0.h0', 'm1')] = -5
    scores[at('a0.h1', 'm0')] = 8  # m0 is never reached.
    scores[at('input', 'm1')] = 0.5
    got = edge_circuit.greedy(scores, cfg, 4)
    self.assertCountEqual(map(tuple, np.argwhere(got.chosen)), [
        at('m1', 'logits'), at('a0.h0', 'm1'), at('input', 'a0.h0<q>'),
        at('input', 'm1')])

  @parameterized.parameters(5, 20)
  def test_greedy_edges_lead_to_the_logits(self, size):
    cfg, _ = _setup()
    got = edge_circuit.greedy(_scores(cfg), cfg, size)
    self.assertEqual(got.size, size)
    owner = edge_circuit.owners(cfg)
    feeds = got.chosen.any(1)
    for target in np.flatnonzero(got.chosen.any(0)):
      self.assertTrue(owner[target] == -1 or feeds[owner[target]])

  def test_prune_by_hand(self):
    cfg, at = _setup()
    chosen = np.zeros_like(edges.is_edge(cfg))
    kept = [at('input', 'a0.h1<v>'), at('a0.h1', 'm1'), at('m1', 'logits')]
    for edge in (*kept, at('input', 'm0'), at('a0.h0', 'a1.h0<k>'),
                 at('a1.h0', 'logits')):
      chosen[edge] = True
    got = edge_circuit.prune(
        edge_circuit.EdgeCircuit(chosen, _scores(cfg)), cfg)
    self.assertCountEqual(map(tuple, np.argwhere(got.chosen)), kept)
    names = np.array(edges.source_names(cfg))
    self.assertEqual(
        names[edge_circuit.nodes(got, cfg)].tolist(), ['input', 'a0.h1', 'm1'])

  def test_all_edges_are_connected(self):
    cfg, _ = _setup()
    whole = edge_circuit.EdgeCircuit(edges.is_edge(cfg), _scores(cfg))
    np.testing.assert_array_equal(
        edge_circuit.prune(whole, cfg).chosen, whole.chosen)

  @parameterized.parameters(0, 1000)
  def test_sizes_that_there_are_not(self, size):
    cfg, _ = _setup()
    for select in (edge_circuit.top, edge_circuit.greedy):
      with self.assertRaisesRegex(ValueError, f'{size} edges; wanted 1 to'):
        select(_scores(cfg), cfg, size)
    with self.assertRaisesRegex(ValueError, 'sources by targets'):
      edge_circuit.top(np.ones((2, 2)), cfg, 1)


class FileTest(parameterized.TestCase):

  def test_round_trip(self):
    cfg, at = _setup()
    circuit = edge_circuit.top(_scores(cfg), cfg, 9)
    fields = json.loads(json.dumps(edge_circuit.to_json(circuit, cfg)))
    self.assertEqual(fields['cfg'], {
        'n_layers': 2, 'n_heads': 2, 'parallel_attn_mlp': False,
        'd_model': 16})
    self.assertLen(fields['edges'], edges.is_edge(cfg).sum())
    edge = fields['edges']['a0.h1->a1.h0<k>']
    self.assertEqual(edge['score'], circuit.scores[at('a0.h1', 'a1.h0<k>')])
    self.assertEqual(
        [*fields['nodes']], [*edges.source_names(cfg), 'logits'])
    got = edge_circuit.from_json(fields, cfg, 'x.json')
    np.testing.assert_array_equal(got.chosen, circuit.chosen)
    np.testing.assert_array_equal(got.scores, circuit.scores)

  def test_bad_files(self):
    cfg, _ = _setup()
    good = edge_circuit.to_json(
        edge_circuit.top(_scores(cfg), cfg, 9), cfg)
    read = lambda fields: edge_circuit.from_json(fields, cfg, 'x.json')
    with self.assertRaisesRegex(ValueError, r"x.json lacks \['edges'\]"):
      read({'cfg': good['cfg']})
    with self.assertRaisesRegex(ValueError, 'n_heads = 9, but this one has 2'):
      read(good | {'cfg': good['cfg'] | {'n_heads': 9}})
    for name in ('m1->m0', 'x->logits'):
      with self.assertRaisesRegex(ValueError, f'{name}.*is no edge'):
        read(good | {'edges': {name: {'score': 1.0, 'in_graph': True}}})


if __name__ == '__main__':
  absltest.main()
