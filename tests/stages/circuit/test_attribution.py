"""Empty circuits are refused; rankings and costs of the candidates."""

import dataclasses
import json
import pathlib
import types
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges as edges_lib
from mansu_jax.config import run as run_config
from mansu_jax.stages.circuit import edge_ends
from mansu_jax.stages.circuit import edge_selection
from mansu_jax.stages.circuit import node_circuit
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.train import edits
from tests import runs
from tests.circuits import small

_CONFIG, _AT = small.with_edge_index()
_REAL = edges_lib.is_edge(_CONFIG)


def _parse(*flags):
  return settings_lib.Settings.from_run(runs.parse(
      '--model=m', '--workdir=w', '--attribution_level=edge', *flags))


def _scored(means, scores):
  return outputs.Scored(
      answered=np.ones(0, bool), metric_clean=np.ones(0),
      metric_corrupt=np.ones(0), pairs=[], means=means,
      token_roles=np.zeros((2, 2, 3)),
      edges=outputs.EdgeScores(means=scores))


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
        node_circuit, 'make_measure', side_effect=AssertionError('went on'))
    with measured:
      return edge_ends.find(
          _parse('--circuit_resamples=0', *flags), self.model,
          _scored(self.means, scores))

  def _scores(self, *edges):
    scores = np.where(_REAL, 1e-3, 0.0)
    for place, edge in enumerate(edges):
      scores[_AT(*edge)] = 2.0 - 0.1 * place
    return scores

  def test_a_circuit_that_pruning_empties(self):
    scores = self._scores(('m0', 'logits'))
    with self.assertRaisesRegex(ValueError, (
        '--circuit_edges=1 and .*=greedy select no path of edges.*Raise')):
      self._find(scores, '--circuit_edges=1')
    circuit = edge_circuit.EdgeCircuit(_REAL & False, scores)
    with self.assertRaisesRegex(ValueError, '=top select .*selection=greedy'):
      edge_selection.check_not_empty(
          _parse('--circuit_edge_selection=top').circuit, circuit)

  def test_a_circuit_without_weights(self):
    with self.assertRaisesRegex(
        ValueError, 'by --circuit_edges=1 starts or ends at .*Raise'):
      self._find(self._scores(('input', 'logits')), '--circuit_edges=1')

  def test_a_budget_below_the_first_node(self):
    with self.assertRaisesRegex(ValueError, 'less than the first node'):
      self._find(self._scores(('m0', 'logits'), ('input', 'm0')),
                 '--circuit_edges=2', '--circuit_budget=1e-6')


class MovableTest(parameterized.TestCase):

  @parameterized.parameters('attributed', 'random')
  def test_budget_counts_movable_weights(self, selection):
    scores = np.where(_REAL, 1e-3, 0.0)
    for place, edge in enumerate((
        ('input', 'a0.h1<v>'), ('a0.h1', 'm0'), ('m0', 'logits'),
        ('input', 'a1.h0<k>'), ('a1.h0', 'logits'))):
      scores[_AT(*edge)] = 2.0 - 0.1 * place
    params = small.params(_CONFIG)
    total = sum(x.size for x in jax.tree.leaves(params))
    # v, and o, of a head; k, and o, of another; what 10 neurons own.
    part = _CONFIG.d_model * _CONFIG.d_head
    budget = 4 * part + 10 * 3 * _CONFIG.d_model
    rng = np.random.default_rng(0)
    means = {kind: rng.uniform(1, 2, size=shape)
             for kind, shape in graph.shapes(_CONFIG).items()}
    model = types.SimpleNamespace(config=_CONFIG, params=params)
    measure = mock.Mock(return_value=0.5)
    with mock.patch.object(
        node_circuit, 'make_measure', return_value=measure), (
            mock.patch.object(
                edge_selection, 'make_measure', return_value=measure)):
      found = edge_ends.find(
          _parse('--circuit_resamples=0', '--circuit_edges=5',
                 f'--circuit_selection={selection}',
                 f'--circuit_budget={(budget + 1) / total}'),
          model, _scored(means, scores))
    self.assertAlmostEqual(found.report['share_of_weights'], budget / total)
    edit = edits.circuit_edit(
        types.SimpleNamespace(config=_CONFIG, params=params), found.circuit,
        (), quantized_views=False, movable=found.movable)
    moves = jax.tree.map(
        lambda x, mask: int(jnp.broadcast_to(mask, x.shape).sum()),
        edit.theta, edit.movable)
    self.assertEqual(sum(jax.tree.leaves(moves)), budget)
    folder = pathlib.Path(self.create_tempdir())
    outputs.write(found, _CONFIG, folder)
    nodes = json.loads((folder / 'circuit.json').read_text())
    path = folder / 'circuit_edges.json'
    if selection == 'random':  # No edges end at its nodes.
      self.assertFalse(path.exists())
      self.assertIsNone(nodes['edges'])
      return
    edges = edge_circuit.from_json(
        json.loads(path.read_text()), _CONFIG, 'circuit_edges.json')
    self.assertEqual(edges.size, 5)
    self.assertEqual(set(edge_circuit.named(edges, _CONFIG)), set(
        nodes['edges']))
    self.assertLen(found.report['summary']['edges'], 5)


class ContrastTest(absltest.TestCase):

  def test_nodes_below_0_are_ranked_too(self):
    rng = np.random.default_rng(0)
    own, retain = ({kind: rng.normal(size=shape) for kind, shape in
                    graph.shapes(_CONFIG).items()} for _ in range(2))
    values = {kind: select.contrasted(own[kind], retain[kind], 2.0)
              for kind in own}
    for kind, found in values.items():
      np.testing.assert_allclose(
          found, np.abs(own[kind]) - 2 * np.abs(retain[kind]))
      self.assertLess(found.min(), 0)
      np.testing.assert_array_equal(
          select.contrasted(own[kind], None, 2.0), np.abs(own[kind]))
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
    order, first = edge_selection.rank(options, _CONFIG, scores, values)
    np.testing.assert_array_equal(
        edge_selection.select_edges(options, _CONFIG, scores, retain).chosen,
        first(options.edges).chosen)
    self.assertTrue((np.diff(values.flat[order]) <= 0).all())
    self.assertLess(values.flat[order[-1]], 0)


class RandomEdgesTest(parameterized.TestCase):

  @parameterized.product(selection=('greedy', 'top'), cap=(1.0, 0.5))
  def test_selected_and_pruned_as_the_circuit(self, selection, cap):
    settings = _parse(f'--circuit_edge_selection={selection}',
                    f'--circuit_per_layer_cap={cap}', '--circuit_edges=20')
    scores = np.where(_REAL, np.random.default_rng(0).normal(
        size=_REAL.shape), 0)
    layers, rng = range(_CONFIG.num_layers), np.random.default_rng(1)
    never_patched = edge_select.outside_range(_CONFIG, layers)
    circuit = edge_selection.select_edges(
        settings.circuit, _CONFIG, scores)
    draw = lambda size: edge_selection.random_edges(
        settings.circuit, _CONFIG, scores, None, size, rng)
    sizes, same = [], []
    for _ in range(20):
      got = draw(20)
      self.assertFalse((got & ~_REAL).any())
      pruned = edge_select.prune(
          edge_circuit.EdgeCircuit(got, scores), never_patched, _CONFIG)
      np.testing.assert_array_equal(pruned.chosen, got)
      sizes.append(got.sum())
      same.append((got & circuit.chosen).sum() / circuit.size)
    self.assertLessEqual(max(sizes), 20)
    self.assertGreater(max(sizes), 0)
    self.assertLess(np.mean(same), 0.9)
    self.assertFalse(draw(0).any())

  def test_the_size_is_that_before_pruning(self):
    settings = _parse('--circuit_edges=20')
    scores = np.where(_REAL, np.random.default_rng(0).normal(
        size=_REAL.shape), 0)
    with mock.patch.object(
        edge_select, 'prune', side_effect=lambda circuit, *_: circuit):
      got = edge_selection.random_edges(
          settings.circuit, _CONFIG, scores, None, 20, np.random.default_rng(0))
    self.assertEqual(got.sum(), 20)


if __name__ == '__main__':
  absltest.main()
