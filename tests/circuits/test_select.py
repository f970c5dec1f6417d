"""Selection keeps its budget, cap and layers; random circuits match it."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from tests.circuits import small

_CONFIG = small.config(num_layers=4)
_TOTAL = 12345  # Weights of some model.


def _options(**changes):
  return run_config.CircuitConfig(**changes)


def _scores(seed=0):
  """Of both signs: the lowest are ranked last."""
  rng = np.random.default_rng(seed)
  return {kind: rng.normal(size=shape)
          for kind, shape in graph.shapes(_CONFIG).items()}


def _rank(level='neuron_and_head', scores=None, **changes):
  return select.rank(scores or _scores(), level, _options(**changes), _CONFIG)


def _nodes(ranking):
  return [(ranking.kinds[k], int(layer), int(node)) for k, layer, node in zip(
      ranking.kind, ranking.layer, ranking.node)]


class LayerRangeTest(parameterized.TestCase):

  @parameterized.parameters(
      (0, -1, range(0, 4)), (1, -2, range(1, 3)), (2, 2, range(2, 3)),
      (0, -4, range(0, 1)))
  def test_negative_counts_from_the_end(self, first, last, want):
    got = select.layer_range(_options(first_layer=first, last_layer=last), 4)
    self.assertEqual(got, want)

  @parameterized.parameters((0, 4), (3, 2), (4, -1), (0, -5), (3, -2))
  def test_a_range_outside_the_model_is_refused(self, first, last):
    with self.assertRaisesRegex(
        ValueError, f'first_layer={first} and .*{last} select no layer'):
      select.layer_range(_options(first_layer=first, last_layer=last), 4)


class RankTest(parameterized.TestCase):

  @parameterized.parameters('neuron', 'head', 'neuron_and_head')
  def test_rank_orders_nodes_by_score_per_weight(self, level):
    scores = _scores()
    nodes = _nodes(_rank(level, scores))
    want = []
    for kind in graph.LEVEL_KINDS[level]:
      cost = {'neurons': 3 * 16, 'heads': 2 * 16 * 4, 'kv_heads': 2 * 16 * 4}
      for layer, row in enumerate(scores[kind]):
        for node, score in enumerate(row):
          want.append((-score / cost[kind], (kind, layer, node)))
    self.assertEqual(nodes, [node for _, node in sorted(want)])

  def test_rank_uses_the_given_costs(self):
    values = {'neurons': np.full((4, 24), 6.0)}
    costs = {'neurons': 1 + np.arange(4 * 24).reshape(4, 24)[::-1]}
    ranking = select.rank(values, 'neuron', _options(), _CONFIG, costs)
    np.testing.assert_array_equal(ranking.cost, 1 + np.arange(4 * 24))
    np.testing.assert_array_equal(
        costs['neurons'][ranking.layer, ranking.node], ranking.cost)

  def test_costs_add_up_to_num_weights(self):
    ranking = _rank()
    for size in (1, 10, 50):
      self.assertEqual(
          graph.num_weights(
              select.prefix(ranking, size, _CONFIG), _CONFIG),
          ranking.cost[:size].sum())

  @parameterized.parameters(
      (1.0, 24, 4), (0.5, 12, 2), (0.3, 7, 1), (0.01, 1, 1))
  def test_cap_keeps_the_best_of_each_layer(self, cap, neurons, heads):
    scores = _scores()
    nodes = _nodes(_rank('neuron_and_head', scores, per_layer_cap=cap))
    for kind, count in (('neurons', neurons), ('heads', heads)):
      for layer in range(4):
        chosen = {n for k, at, n in nodes if (k, at) == (kind, layer)}
        best = np.argsort(-scores[kind][layer])[:count]
        self.assertEqual(chosen, set(best.tolist()))

  def test_only_layers_of_the_range_are_ranked(self):
    nodes = _nodes(_rank(first_layer=1, last_layer=-2))
    self.assertEqual({layer for _, layer, _ in nodes}, {1, 2})
    self.assertLen(nodes, 2 * (24 + 4 + 2))

  def test_prefixes_grow_by_one_node(self):
    ranking = _rank()
    for size in (0, 1, 7, len(ranking.node)):
      circuit = select.prefix(ranking, size, _CONFIG)
      got = {(kind, int(layer), int(node)) for kind in graph.KINDS
             for layer, node in zip(*np.nonzero(circuit[kind]))}
      self.assertEqual(got, set(_nodes(ranking)[:size]))


class BudgetTest(parameterized.TestCase):

  @parameterized.parameters(0.01, 0.03, 0.2, 0.5)
  def test_the_largest_prefix_within_the_budget(self, budget):
    ranking = _rank()
    size = select.size_within(ranking, budget, _TOTAL)
    cost = lambda n: graph.num_weights(
        select.prefix(ranking, n, _CONFIG), _CONFIG)
    self.assertLessEqual(cost(size), budget * _TOTAL)
    self.assertGreater(cost(size + 1), budget * _TOTAL)

  def test_the_budget_may_hold_all_candidates(self):
    ranking = _rank(first_layer=3)
    self.assertEqual(
        select.size_within(ranking, 1.0, _TOTAL), len(ranking.node))

  def test_less_than_one_node_is_refused(self):
    with self.assertRaisesRegex(
        ValueError, r'circuit_budget=0.001 of 12345 .* 12 weights.*\(48\)'):
      select.size_within(_rank('neuron'), 0.001, _TOTAL)

  def test_less_than_the_first_node_is_refused(self):
    ranking = select.Ranking(*np.zeros((3, 2), int), np.array([128, 48]), ())
    with self.assertRaisesRegex(ValueError, r'the first node .*\(128\)'):
      select.size_within(ranking, 100 / _TOTAL, _TOTAL)


class MatchedRandomTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.circuit = select.prefix(_rank(first_layer=1), 30, _CONFIG)
    self.layers = range(1, 4)

  def _draw(self, seed):
    return select.matched_random(
        self.circuit, self.layers, np.random.default_rng(seed))

  def test_matched_random_keeps_counts_by_kind_and_layer(self):
    for seed in range(5):
      got = self._draw(seed)
      for kind in graph.KINDS:
        np.testing.assert_array_equal(
            got[kind].sum(1), self.circuit[kind].sum(1))

  def test_fills_is_true_if_a_circuit_has_all_nodes_of_its_layers(self):
    self.assertFalse(select.fills(self.circuit, self.layers))
    full = graph.Circuit(**{
        kind: np.zeros_like(self.circuit[kind]) for kind in graph.KINDS})
    full.neurons[2] = True
    self.assertTrue(select.fills(full, self.layers))
    full.neurons[2, 0] = False
    self.assertFalse(select.fills(full, self.layers))

  def test_draws_differ_by_seed_only(self):
    same, other = self._draw(0), self._draw(1)
    np.testing.assert_array_equal(self._draw(0).neurons, same.neurons)
    self.assertTrue(np.any(same.neurons != other.neurons))

  def test_matched_random_is_uniform_within_a_layer(self):
    # 24 neurons, 400 draws: each is drawn `share` of the time, +- 5 sigma.
    rng = np.random.default_rng(0)
    drawn = np.mean([select.matched_random(
        self.circuit, self.layers, rng).neurons for _ in range(400)], axis=0)
    share = self.circuit.neurons.mean(1, keepdims=True)
    sigma = np.sqrt(share * (1 - share) / 400)
    self.assertTrue(np.all(np.abs(drawn - share) <= 5 * sigma))
    self.assertGreater(share.max(), 0.05)


  def test_matched_random_draws_among_given_nodes(self):
    rng = np.random.default_rng(0)
    some = select.matched_random(
        select.prefix(_rank(first_layer=1), 12, _CONFIG), self.layers, rng,
        among=self.circuit)
    for kind in graph.KINDS:
      self.assertFalse((some[kind] & ~self.circuit[kind]).any())


class BestHalfTest(parameterized.TestCase):

  @parameterized.parameters('neuron', 'head', 'neuron_and_head')
  def test_best_half_is_a_prefix_of_half_the_weights(self, level):
    scores = {kind: np.abs(x) for kind, x in _scores().items()}
    ranking = _rank(level, scores)
    circuit = select.prefix(ranking, 9, _CONFIG)
    half = int((np.cumsum(ranking.cost[:9])
                <= ranking.cost[:9].sum() / 2).sum())
    got = select.best_half(
        circuit, {kind: -x for kind, x in scores.items()}, _CONFIG)
    want = select.prefix(ranking, half, _CONFIG)
    for kind in graph.KINDS:
      np.testing.assert_array_equal(got[kind], want[kind])

  def test_best_half_of_one_node_is_empty(self):
    circuit = select.prefix(_rank(), 1, _CONFIG)
    self.assertEqual(
        select.best_half(circuit, _scores(), _CONFIG).kinds, ())


class OnlyTest(absltest.TestCase):

  def test_drops_nodes_of_value_0_and_keeps_the_order(self):
    ranking = select.Ranking(
        np.array([0, 1, 0, 1]), np.array([0, 1, 1, 0]), np.array([2, 0, 1, 1]),
        np.array([5, 7, 5, 7]), ('neurons', 'heads'))
    values = {'neurons': np.zeros((2, 3)), 'heads': np.zeros((2, 2))}
    values['neurons'][1, 1] = values['heads'][1, 0] = -3.0
    got = select.nonzero(ranking, values)
    self.assertEqual(got.kind.tolist(), [1, 0])
    self.assertEqual(got.node.tolist(), [0, 1])
    self.assertEqual(got.cost.tolist(), [7, 5])


class CountSameTest(parameterized.TestCase):

  @parameterized.parameters(
      (20, 'of faithfulness: 20 of 20 random .* is uninformative. Choose a'),
      (3, '3 of 20 random .* Only the other draws are informative. Choose a'))
  def test_the_count_is_recorded_and_logged(self, count, message):
    with self.assertLogs(level='WARNING') as logs:
      got = select.count_same(count, 20, 'faithfulness')
    self.assertEqual(got['same'], count)
    self.assertRegex(got['warning'], message)
    self.assertIn(got['warning'], logs.output[0])

  def test_no_warning_if_no_circuit_is_equal(self):
    with self.assertNoLogs(level='WARNING'):
      self.assertEqual(select.count_same(0, 20, 'overlap'), {'same': 0})


if __name__ == '__main__':
  absltest.main()
