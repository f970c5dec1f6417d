"""The summary for the report matches the circuit and its scores."""

import json

from absl.testing import absltest
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges
from mansu_jax.stages.circuit import circuit_summary
from tests.circuits import small

_CONFIG = small.config()


def _means(config=_CONFIG):
  rng = np.random.default_rng(0)
  return {kind: rng.normal(size=shape).astype(np.float32)
          for kind, shape in graph.shapes(config).items()}


class NodesTest(absltest.TestCase):

  def test_layers_are_summed_in_and_outside_the_circuit(self):
    circuit, means = small.circuit(_CONFIG), _means()
    got = circuit_summary.of_nodes(circuit, means, None)
    mlp, scores = got['summary']['mlp'], means['neurons']
    self.assertEqual(mlp['neurons'], [3, 1])
    chosen = scores[0, [0, 7, 23]]
    np.testing.assert_allclose(
        [mlp['score'][0], mlp['size'][0], mlp['all'][0]],
        [chosen.sum(), np.abs(chosen).sum(), np.abs(scores[0]).sum()],
        rtol=1e-3)
    self.assertEqual(got['summary']['heads']['held'],
                     [[0, 0, 1, 0], [1, 1, 0, 1]])
    np.testing.assert_allclose(
        got['summary']['kv_heads']['score'], means['kv_heads'], rtol=1e-3)
    self.assertEqual(json.loads(json.dumps(got)), got)

  def test_summary_omits_kinds_outside_the_level(self):
    got = circuit_summary.of_nodes(
        small.circuit(_CONFIG, ('neurons',)), _means(), None)['summary']
    self.assertNotIn('kv_heads', got)
    self.assertFalse(np.any(got['heads']['held']))

  def test_the_largest_are_named_in_order(self):
    circuit, means = small.circuit(_CONFIG), _means()
    times = {kind: np.full(means[kind].shape, 0.25) for kind in means}
    times['neurons'][1, 7] = 0.75
    found = circuit_summary.of_nodes(circuit, means, times)['largest']
    self.assertLen(found, 9)
    sizes = [abs(entry['score']) for entry in found]
    self.assertEqual(sizes, sorted(sizes, reverse=True))
    by_name = {entry['name']: entry for entry in found}
    self.assertAlmostEqual(
        by_name['m1.n7']['score'], means['neurons'][1, 7], places=6)
    self.assertEqual(by_name['m1.n7']['resamples'], 0.75)
    self.assertEqual(by_name['a0.h2']['resamples'], 0.25)
    self.assertIn('a1.kv1', by_name)


class EdgesTest(absltest.TestCase):

  def _of(self, size, config=_CONFIG):
    real = edges.is_edge(config)
    scores = np.where(
        real, np.random.default_rng(0).normal(size=real.shape), 0)
    never_patched = np.zeros_like(real)
    order = edge_select.rank_greedy(np.abs(scores), real, never_patched, config)
    circuit = edge_select.prune(edge_select.prefix(
        scores.astype(np.float32), order, size), never_patched, config)
    return circuit, circuit_summary.of_edges(
        circuit, config, _means(config), None)

  def test_nodes_are_those_of_the_edges(self):
    circuit, got = self._of(12)
    names = np.array(edges.source_names(_CONFIG))[
        edge_circuit.nodes(circuit, _CONFIG)]
    drawn = got['summary']
    held = [f'a{i}.h{j}' for i, row in enumerate(drawn['heads']['held'])
            for j, is_held in enumerate(row) if is_held]
    held += [f'm{i}' for i, (is_held,) in enumerate(drawn['mlp']['held'])
             if is_held]
    self.assertCountEqual(held, set(names) - {'input'})
    np.testing.assert_allclose(
        drawn['mlp']['score'], _means()['neurons'].sum(1, keepdims=True),
        rtol=1e-3)
    self.assertEqual(json.loads(json.dumps(got)), got)

  def test_the_largest_edges_are_drawn(self):
    circuit, got = self._of(190, small.config(num_layers=3))
    self.assertGreater(circuit.size, 150)
    drawn = got['summary']['edges']
    self.assertLen(drawn, 150)
    least = abs(drawn[-1][2])
    sizes = np.sort(np.abs(circuit.scores[circuit.chosen]))
    self.assertAlmostEqual(least, sizes[-150], delta=1e-3)
    self.assertEqual(
        got['largest'][0]['name'], '->'.join(drawn[0][:2]))


if __name__ == '__main__':
  absltest.main()
