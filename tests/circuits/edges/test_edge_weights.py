"""From edges to the weights at their ends, by hand."""

from absl.testing import absltest
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edge_weights
from mansu_jax.circuits.edges import edges
from mansu_jax.models import layout
from tests.circuits import small

_CONFIG = small.config()  # 2 layers, 4 heads on 2 key/value heads, F 24.


def _circuit(**scores):
  """Edges by name, as `a0_h1__m1` for a0.h1->m1 and `q` for <q>."""
  sources, targets = (
      edges.source_names(_CONFIG), edges.target_names(_CONFIG))
  values = np.full((len(sources), len(targets)), 9.0, np.float32)
  chosen = np.zeros(values.shape, bool)
  for name, score in scores.items():
    source, target = name.replace('_h', '.h').split('__')
    if target[-1] in 'qkv':
      target = f'{target[:-1]}<{target[-1]}>'
    at = sources.index(source), targets.index(target)
    values[at], chosen[at] = score, True
  return edge_circuit.EdgeCircuit(chosen, values)


class EdgeWeightsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.found = edge_weights.carried(_circuit(
        input__a0_h1q=1.0, input__a0_h2k=-2.0, input__a0_h3k=0.5,
        a0_h1__m0=4.0, a0_h1__a1_h0v=-8.0, m0__a1_h3q=16.0, m0__logits=32.0,
        a1_h3__logits=64.0), _CONFIG)

  def test_carried_scores_by_hand(self):
    got = self.found
    np.testing.assert_array_equal(got.q, [[0, 1, 0, 0], [0, 0, 0, 16]])
    np.testing.assert_array_equal(got.k, [[0, 2.5], [0, 0]])  # Of its group.
    np.testing.assert_array_equal(got.v, [[0, 0], [8, 0]])
    np.testing.assert_array_equal(got.o, [[0, 12, 0, 0], [0, 0, 0, 64]])
    np.testing.assert_array_equal(got.reads, [4, 0])
    np.testing.assert_array_equal(got.writes, [48, 0])

  def test_neurons_share_what_their_mlp_carries(self):
    neurons = np.zeros((2, 24))
    neurons[0, :3] = 1, -2, 1
    neurons[1, 0] = 5
    got = edge_weights.unit_values(self.found, neurons)
    np.testing.assert_allclose(got['neurons'][0, :4], [13, 26, 13, 0])
    np.testing.assert_array_equal(got['neurons'][1], 0)
    np.testing.assert_array_equal(
        got['heads'], [[0, 13, 0, 0], [0, 0, 0, 80]])
    np.testing.assert_array_equal(got['kv_heads'], [[0, 2.5], [8, 0]])

  def test_movable_covers_only_ends_of_edges(self):
    got = edge_weights.movable(self.found, _CONFIG)
    for name, want in (
        ('attn/q', [[0, 1, 0, 0], [0, 0, 0, 1]]),
        ('attn/o', [[0, 1, 0, 0], [0, 0, 0, 1]]),
        ('attn/k', [[0, 1], [0, 0]]), ('attn/v', [[0, 0], [1, 0]]),
        ('mlp/gate', [[1] * 24, [0] * 24]), ('mlp/up', [[1] * 24, [0] * 24]),
        ('mlp/down', [[1] * 24, [0] * 24])):
      np.testing.assert_array_equal(got[f'layers/{name}'], want, name)

  def test_mlp_without_incoming_edges_moves_only_down(self):
    found = edge_weights.carried(_circuit(m1__logits=1.0), _CONFIG)
    got = edge_weights.movable(found, _CONFIG)
    self.assertFalse(got['layers/mlp/gate'].any())
    np.testing.assert_array_equal(got['layers/mlp/down'].any(1), [False, True])

  def test_costs_count_movable_weights(self):
    width, head = _CONFIG.d_model, _CONFIG.d_model * _CONFIG.d_head
    got = edge_weights.costs(
        edge_weights.movable(self.found, _CONFIG), _CONFIG)
    np.testing.assert_array_equal(
        got['neurons'], [[3 * width] * 24, [0] * 24])
    np.testing.assert_array_equal(
        got['heads'], [[0, 2 * head, 0, 0], [0, 0, 0, 2 * head]])
    np.testing.assert_array_equal(got['kv_heads'], [[0, head], [head, 0]])

  def test_num_weights_counts_movable_weights(self):
    circuit = graph.empty(_CONFIG)
    circuit.neurons[:, :2] = circuit.heads[1, 2:] = True
    circuit.kv_heads[:] = True
    got = edge_weights.num_weights(
        circuit, edge_weights.movable(self.found, _CONFIG), _CONFIG)
    head = _CONFIG.d_model * _CONFIG.d_head
    self.assertEqual(got, 2 * 3 * _CONFIG.d_model + 2 * head + 2 * head)

  def test_transfer_keeps_the_movable_parts(self):
    rng = np.random.default_rng(0)
    found = edge_weights.carried(_circuit(
        input__a0_h1q=1.0, a0_h2__m0=1.0, input__a0_h3k=1.0, m0__logits=1.0,
        a1_h0__logits=1.0), _CONFIG)
    parts = edge_weights.movable(found, _CONFIG)
    circuit = graph.empty(_CONFIG)
    circuit.neurons[0, :5] = circuit.heads[0, 1:3] = True
    circuit.heads[1, 0] = circuit.kv_heads[0, 1] = True
    drawn = set()
    for _ in range(20):
      other = select.matched_random(circuit, range(2), rng)
      got = edge_weights.transfer(parts, circuit, other, rng)
      self.assertEqual(
          *(edge_weights.num_weights(c, p, _CONFIG)
            for c, p in ((circuit, parts), (other, got))))
      for name, (kind, _) in layout.UNIT_AXIS.items():
        self.assertFalse((got[name] & ~other[kind]).any(), name)
        np.testing.assert_array_equal(
            got[name].sum(1), (parts[name] & circuit[kind]).sum(1), name)
      drawn.add(got['layers/attn/q'].tobytes())
    self.assertGreater(len(drawn), 2)

  def test_named_maps_edge_names_to_scores(self):
    circuit = _circuit(input__a0_h1q=1.0, m0__logits=-2.0)
    self.assertEqual(edge_circuit.named(circuit, _CONFIG), {
        'input->a0.h1<q>': 1.0, 'm0->logits': -2.0})


if __name__ == '__main__':
  absltest.main()
