"""Reading and writing circuits of edges; circuits of another model."""

import json

from absl.testing import absltest
import numpy as np

from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_select
from mansu_jax.circuits.edges import edges
from tests.circuits import small
from tests.models import tiny


def _first(cfg, size):
  """The circuit of some edges."""
  real = edges.is_edge(cfg)
  drawn = np.random.default_rng(0).normal(size=real.shape)
  scores = np.where(real, drawn, 0).astype(np.float32)
  return edge_select.prefix(scores, np.flatnonzero(real), size)


class FileTest(absltest.TestCase):

  def test_round_trip(self):
    cfg, at = small.with_edge_index()
    circuit = _first(cfg, 9)
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
    self.assertIsNone(got.scored)

  def test_models_with_attention_and_mlp_side_by_side(self):
    cfg = tiny.config(**dict(tiny.LAYER_KINDS)['parallel'])
    fields = edge_circuit.to_json(_first(cfg, 9), cfg)
    self.assertIs(fields['cfg']['parallel_attn_mlp'], True)
    self.assertNotIn('a0.h0->m0', fields['edges'])
    for value in (True, False):  # Former versions wrote False.
      fields['cfg']['parallel_attn_mlp'] = value
      self.assertEqual(edge_circuit.from_json(fields, cfg, 'x.json').size, 9)
    with self.assertRaisesRegex(ValueError, 'parallel_attn_mlp = True, but'):
      edge_circuit.from_json(
          {'cfg': {'parallel_attn_mlp': True}, 'edges': {}}, tiny.config(),
          'x.json')

  def test_edges_without_a_score(self):
    cfg, at = small.with_edge_index()
    here = at('m0', 'logits')
    fields = {
        'cfg': {'n_layers': 2}, 'nodes': {'m0': True}, 'edges': {
            'm0->logits': {'score': -2, 'in_graph': True},
            'm1->logits': {'score': None}, 'input->m0': {'in_graph': True}}}
    got = edge_circuit.from_json(fields, cfg, 'x.json')
    self.assertEqual((got.size, got.scored.sum()), (2, 1))
    self.assertEqual(got.scores[here], -2)
    again = edge_circuit.to_json(got, cfg)
    self.assertEqual(again['edges']['m0->logits']['score'], -2)
    # Other readers want a score of every edge.
    self.assertEqual(
        again['edges']['input->m0'], {'score': 0, 'in_graph': True})
    self.assertIn('input->m0', again['unscored'])
    self.assertNotIn('m0->logits', again['unscored'])
    back = edge_circuit.from_json(again, cfg, 'x.json')
    np.testing.assert_array_equal(back.scored, got.scored)
    np.testing.assert_array_equal(back.chosen, got.chosen)
    self.assertTrue(again['nodes']['m0']['in_graph'])

  def test_bad_files(self):
    cfg, _ = small.with_edge_index()
    good = edge_circuit.to_json(_first(cfg, 9), cfg)
    read = lambda fields: edge_circuit.from_json(fields, cfg, 'x.json')
    with self.assertRaisesRegex(ValueError, r"x.json lacks \['edges'\]"):
      read({'cfg': good['cfg']})
    with self.assertRaisesRegex(ValueError, 'n_heads = 9, but this one has 2'):
      read(good | {'cfg': good['cfg'] | {'n_heads': 9}})
    for name in ('m1->m0', 'x->logits'):
      with self.assertRaisesRegex(ValueError, f'{name}.*is not an edge'):
        read(good | {'edges': {name: {'score': 1.0, 'in_graph': True}}})

  def test_wrong_types(self):
    cfg, _ = small.with_edge_index()
    good = edge_circuit.to_json(_first(cfg, 9), cfg)
    edge = lambda value: {'edges': {'m0->logits': value}}
    score = lambda value: edge({'score': value, 'in_graph': True})
    nodes = lambda value: {'nodes': {'m0': value}}
    with self.assertRaisesRegex(
        ValueError, 'x.json is a circuit of nodes; wanted a circuit of edges'):
      edge_circuit.from_json(
          {'nodes': {'heads': {}}, 'edges': None, 'report': {}}, cfg, 'x.json')
    for change, message in (
        ({'unscored': 3}, "'unscored' is 3; wanted a list"),
        ({'cfg': []}, "'cfg' is \\[\\]; wanted an object"),
        ({'edges': []}, "'edges' is \\[\\]; wanted an object"),
        ({'edges': None}, "'edges' is null; wanted an object"),
        ({'nodes': None}, "'nodes' is null; wanted an object"),
        (edge(0.5), "edge 'm0->logits' is 0.5; wanted an object"),
        (score('high'), 'is "high"; wanted a finite number'),
        (score(True), 'is true; wanted a finite number'),
        (score(float('nan')), 'is NaN; wanted a finite number'),
        (score(10**400), 'wanted a finite number'),
        (score(1e39), 'wanted a finite number'),
        (edge({'in_graph': 1}), "'in_graph' of 'm0->logits' is 1; wanted true"),
        (nodes([True]), "node 'm0' is \\[true\\]; wanted an object"),
        (nodes({'in_graph': 'no'}), "'in_graph' of 'm0' is \"no\""),
        (nodes({'neurons': [True]}), "'m0' has 'neurons'.*without neurons"),
        ({'nodes': {'m9': {}}}, "'m9', which is not a node of this model")):
      with self.subTest(message):
        with self.assertRaisesRegex(ValueError, f'^x.json.*{message}'):
          edge_circuit.from_json(good | change, cfg, 'x.json')
    with self.assertRaisesRegex(ValueError, 'the whole file is'):
      edge_circuit.from_json([good], cfg, 'x.json')

  def test_read_refuses_broken_json_and_missing_files(self):
    cfg, _ = small.with_edge_index()
    path = self.create_tempfile('circuit.json', content='{"cfg": ').full_path
    with self.assertRaisesRegex(ValueError, 'circuit.json is not JSON'):
      edge_circuit.read(path, cfg)
    with self.assertRaisesRegex(ValueError, 'gone.json.*does not exist'):
      edge_circuit.read('gone.json', cfg)


if __name__ == '__main__':
  absltest.main()
