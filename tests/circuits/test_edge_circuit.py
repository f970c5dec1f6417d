"""Circuits of edges as files, and whose edges they are."""

import json

from absl.testing import absltest
import numpy as np

from mansu_jax.circuits import edge_circuit
from mansu_jax.circuits import edge_select
from mansu_jax.circuits import edges
from tests.circuits import small


def _first(cfg, size):
  """The circuit of some edges."""
  real = edges.is_edge(cfg)
  drawn = np.random.default_rng(0).normal(size=real.shape)
  scores = np.where(real, drawn, 0).astype(np.float32)
  return edge_select.prefix(scores, np.flatnonzero(real), size)


class FileTest(absltest.TestCase):

  def test_round_trip(self):
    cfg, at = small.with_places()
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

  def test_bad_files(self):
    cfg, _ = small.with_places()
    good = edge_circuit.to_json(_first(cfg, 9), cfg)
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
