"""Nodes, what they own, and the circuit file."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.models import decoder
from tests.circuits import small
from tests.reference import circuit_naive

_CONFIG = small.config()


def _scores(cfg):
  rng = np.random.default_rng(0)
  return {kind: rng.normal(size=shape)
          for kind, shape in graph.shapes(cfg).items()}


class CircuitTest(parameterized.TestCase):

  def test_all_nodes_own_all_matrices_of_the_layers(self):
    layers = decoder.abstract(_CONFIG)['layers']
    whole = small.random_circuit(_CONFIG, share=2.0)
    matrices = sum(leaf.size for module in ('mlp', 'attn')
                   for leaf in layers[module].values())
    self.assertEqual(graph.num_weights(whole, _CONFIG), matrices)

  def test_num_weights_equals_loops(self):
    nodes = small.circuit(_CONFIG)
    owned = circuit_naive.owned(small.params(_CONFIG), small.members(nodes))
    self.assertEqual(
        graph.num_weights(nodes, _CONFIG),
        sum(int(mask.sum()) for mask in owned.values()))

  @parameterized.parameters(
      ([], (0, 0)), ([('neurons', 0)], (0, 1)), ([('kv_heads', 3)], (3, 4)),
      ([('heads', 1), ('neurons', 3)], (1, 4)))
  def test_span(self, nodes, want):
    circuit = graph.empty(small.config(num_layers=4))
    for kind, layer in nodes:
      circuit[kind][layer, 0] = True
    self.assertEqual(circuit.span, want)

  def test_kinds_lists_kinds_that_have_nodes(self):
    self.assertEqual(small.circuit(_CONFIG).kinds, graph.KINDS)
    self.assertEqual(
        small.circuit(_CONFIG, ['kv_heads']).kinds, ('kv_heads',))
    self.assertEqual(graph.empty(_CONFIG).kinds, ())

  def test_levels_name_known_kinds(self):
    self.assertEqual(
        {k for kinds in graph.LEVEL_KINDS.values() for k in kinds},
        set(graph.KINDS))


class EqualTest(absltest.TestCase):

  def test_key_value_heads_count_in_equal_but_have_no_effect(self):
    one, other = graph.empty(_CONFIG), graph.empty(_CONFIG)
    self.assertTrue(graph.equal(one, other))
    other.kv_heads[1, 0] = True  # Its query heads are not in the circuit.
    self.assertFalse(graph.equal(one, other))
    self.assertTrue(graph.equal_in_effect(one, other))

  def test_neurons_and_query_heads_have_an_effect(self):
    for kind in ('neurons', 'heads'):
      other = graph.empty(_CONFIG)
      other[kind][1, 0] = True
      self.assertFalse(graph.equal(graph.empty(_CONFIG), other))
      self.assertFalse(graph.equal_in_effect(graph.empty(_CONFIG), other))
      self.assertFalse(graph.equal(graph.empty(_CONFIG), other, [kind]))
      self.assertTrue(graph.equal(graph.empty(_CONFIG), other, ['kv_heads']))


class JsonTest(parameterized.TestCase):

  @parameterized.parameters(
      (graph.KINDS,), (('neurons',),), (('heads', 'kv_heads'),), ((),))
  def test_reads_back(self, kinds):
    nodes, scores = small.circuit(_CONFIG, kinds), _scores(_CONFIG)
    data = json.loads(json.dumps(graph.to_json(nodes, scores)))
    self.assertIn('edges', data)
    got = graph.from_json(data, _CONFIG)
    for kind in graph.KINDS:
      np.testing.assert_array_equal(got[kind], nodes[kind])

  def test_holds_the_score_of_each_node(self):
    scores = _scores(_CONFIG)
    data = graph.to_json(small.circuit(_CONFIG), scores)
    self.assertEqual(data['nodes']['neurons'], {
        '0': {str(j): scores['neurons'][0, j] for j in (0, 7, 23)},
        '1': {'7': scores['neurons'][1, 7]}})

  @parameterized.parameters(
      ({'experts': {}}, "'experts'; wanted one of neurons, heads, kv_heads"),
      ({'neurons': {'2': {'0': 1.0}}}, r'neurons \(2, 0\).*of this model'),
      ({'heads': {'0': {'4': 1.0}}}, r'heads \(0, 4\).*2 layers of 4'),
      ({'heads': {'-1': {'0': 1.0}}}, r'heads \(-1, 0\).*of this model'),
      ({'heads': {'0': {'-4': 1.0}}}, r'heads \(0, -4\).*of this model'))
  def test_a_node_that_the_model_lacks_is_refused(self, nodes, message):
    with self.assertRaisesRegex(ValueError, message):
      graph.from_json({'nodes': nodes}, _CONFIG)


if __name__ == '__main__':
  absltest.main()
