"""Circuits that hold nothing are refused, and what they are ranked by."""

import dataclasses
import types
from unittest import mock

from absl.testing import absltest
import numpy as np

from mansu_jax import config as run_config
from mansu_jax.circuits import edge_circuit
from mansu_jax.circuits import edges as edges_lib
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.stages import attribution
from mansu_jax.stages import edge_attribution
from tests import runs
from tests.circuits import small

_CONFIG, _AT = small.with_places()
_REAL = edges_lib.is_edge(_CONFIG)


def _parse(*flags):
  return runs.parse(
      '--model=m', '--workdir=w', '--attribution_level=edge', *flags)


class EmptyTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    params = small.params(_CONFIG)
    self.model = types.SimpleNamespace(config=_CONFIG, params=params)
    self.means = {kind: np.ones(shape)
                  for kind, shape in graph.shapes(_CONFIG).items()}

  def _find(self, scores, *flags):
    """As an unlearn run with these scores of edges."""
    measured = mock.patch.object(
        attribution, '_measure', side_effect=AssertionError('went on'))
    with measured:
      return attribution._find_edges(
          _parse(*flags), self.model, [], self.means, [],
          lambda name, make: {'edges': scores})

  def _scores(self, *edges):
    scores = np.where(_REAL, 1e-3, 0.0)
    for place, edge in enumerate(edges):
      scores[_AT(*edge)] = 2.0 - 0.1 * place
    return scores

  def test_a_circuit_that_pruning_empties(self):
    scores = self._scores(('m0', 'logits'))
    with self.assertRaisesRegex(ValueError, (
        '--circuit_edges=1 and .*=greedy give a circuit of no edge.*Raise')):
      self._find(scores, '--circuit_edges=1')
    circuit = edge_circuit.EdgeCircuit(_REAL & False, scores)
    with self.assertRaisesRegex(ValueError, '=top give .*selection=greedy'):
      edge_attribution.refuse_empty(
          _parse('--circuit_edge_selection=top').circuit, circuit)

  def test_a_circuit_without_weights(self):
    with self.assertRaisesRegex(
        ValueError, 'of --circuit_edges=1 stands for no weights.*Raise'):
      self._find(self._scores(('input', 'logits')), '--circuit_edges=1')

  def test_a_budget_below_the_first_node(self):
    with self.assertRaisesRegex(ValueError, 'less than the first node'):
      self._find(self._scores(('m0', 'logits'), ('input', 'm0')),
                 '--circuit_edges=2', '--circuit_budget=1e-6')


class ContrastTest(absltest.TestCase):

  def test_nodes_below_0_are_ranked_too(self):
    rng = np.random.default_rng(0)
    own, retain = ({kind: rng.normal(size=shape) for kind, shape in
                    graph.shapes(_CONFIG).items()} for _ in range(2))
    values = attribution._values(own, retain, 2.0)
    for kind, found in values.items():
      np.testing.assert_allclose(
          found, np.abs(own[kind]) - 2 * np.abs(retain[kind]))
      self.assertLess(found.min(), 0)
      np.testing.assert_array_equal(
          attribution._values(own, None, 2.0)[kind], np.abs(own[kind]))
    options = run_config.CircuitConfig()
    ranking = select.rank(values, 'neuron', options, _CONFIG)
    ranked = values['neurons'][ranking.layer, ranking.node]
    self.assertTrue((np.diff(ranked) <= 0).all())

  def test_edges_below_0_are_ranked_too(self):
    rng = np.random.default_rng(0)
    scores, retain = rng.normal(size=(2, *_REAL.shape))
    values = np.abs(scores) - 2 * np.abs(retain)
    options = _parse('--circuit_edge_selection=top').circuit
    options = dataclasses.replace(options, contrast=2.0)
    order = edge_attribution._order(
        options, _CONFIG, range(2), scores, retain)
    self.assertTrue((np.diff(values.flat[order]) <= 0).all())
    self.assertLess(values.flat[order[-1]], 0)


if __name__ == '__main__':
  absltest.main()
