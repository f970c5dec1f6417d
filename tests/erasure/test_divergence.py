"""CAD and AS-NC: hand numbers, nulls, resampling by fact."""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.erasure import divergence
from tests.circuits import small

_CONFIG = small.config()


def _random_scores(pairs=6, seed=0, shift=1.0):
  rng = np.random.default_rng(seed)
  return eap_ig.PairScores(
      rng.normal(size=(pairs, 2, 24)) + shift,
      rng.normal(size=(pairs, 2, 4)) + shift, np.ones(pairs), np.zeros(pairs),
      np.zeros((pairs, 2, 2, 4)))


def _neuron_scores(*columns):
  """Scores of the first neurons of layer 0, [P] each; others 0."""
  pairs = len(columns[0])
  neurons = np.zeros((pairs, 2, 24))
  for j, column in enumerate(columns):
    neurons[:, 0, j] = column
  return eap_ig.PairScores(
      neurons, np.zeros((pairs, 2, 4)), np.ones(pairs), np.zeros(pairs),
      np.zeros((pairs, 2, 2, 4)))


def _scaled(scores, factor):
  return scores._replace(
      neurons=factor * scores.neurons, heads=factor * scores.heads)


def _first_neurons(count=3):
  circuit = graph.empty(_CONFIG)
  circuit.neurons[0, :count] = True
  return circuit


def _naive(before, after, nodes):
  """1 - <a_0, a_u> / <a_0, a_0> of mean scores, node by node."""
  across = own = 0.0
  for kind in graph.KINDS:
    for layer, node in zip(*np.nonzero(nodes[kind])):
      a_0, a_u = (np.mean([_node(pair, kind, layer, node) for pair in zip(
          scores.neurons, scores.heads)]) for scores in (before, after))
      across, own = across + a_0 * a_u, own + a_0 * a_0
  return 1 - across / own


def _node(pair, kind, layer, node):
  neurons, heads = pair
  if kind == 'kv_heads':  # Two query heads share one.
    return heads[layer, 2 * node] + heads[layer, 2 * node + 1]
  return (neurons if kind == 'neurons' else heads)[layer, node]


def _measure(before, after, quantized, nodes, groups, **options):
  return divergence.measure(
      before, after, {'base_quantized': quantized}, nodes, np.asarray(groups),
      **dict(resamples=50, seed=0) | options)


class CompareTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('unchanged', 1.0, 0.0), ('gone', 0.0, 1.0), ('reversed', -1.0, 2.0),
      ('halved', 0.5, 0.5), ('grown', 3.0, -2.0))
  def test_hand_numbers(self, factor, want):
    before = _random_scores()
    got = _measure(before, _scaled(before, factor), before,
                   small.circuit(_CONFIG), list('aabbcc'))
    self.assertAlmostEqual(got['value'], want, places=12)
    np.testing.assert_allclose(got['interval'], [want, want], atol=1e-12)

  def test_equals_the_loops(self):
    before, after = _random_scores(), _random_scores(seed=1)
    nodes = small.circuit(_CONFIG)
    got = _measure(before, after, before, nodes, range(6))
    self.assertAlmostEqual(
        got['value'], _naive(before, after, nodes), places=12)
    self.assertEqual(got['pairs'], 6)

  def test_other_nodes_do_not_count(self):
    before, other = _random_scores(), _random_scores(seed=1)
    nodes = small.circuit(_CONFIG, ['neurons', 'heads'])
    after = before._replace(
        neurons=np.where(nodes.neurons, before.neurons, other.neurons),
        heads=np.where(nodes.heads, before.heads, other.heads))
    got = _measure(before, after, before, nodes, range(6))
    self.assertAlmostEqual(got['value'], 0.0, places=12)
    off = divergence.outside(nodes, 'neuron_and_head')
    got = _measure(before, after, before, off, range(6))
    self.assertAlmostEqual(
        got['value'], _naive(before, after, off), places=12)
    self.assertGreater(abs(got['value']), 0.01)

  @parameterized.parameters('neuron', 'head', 'neuron_and_head')
  def test_outside_is_the_complement_within_the_level(self, level):
    nodes = small.circuit(_CONFIG)
    off = divergence.outside(nodes, level)
    for kind in graph.KINDS:
      want = ~nodes[kind] & (kind in graph.LEVEL_KINDS[level])
      np.testing.assert_array_equal(off[kind], want)

  def test_key_value_heads_count_as_the_sum_of_their_group(self):
    before, nodes = _random_scores(), small.circuit(_CONFIG, ['kv_heads'])
    got = _measure(before, _scaled(before, 0.25), before, nodes, range(6))
    self.assertAlmostEqual(got['value'], 0.75, places=12)
    # Head (1, 1) of 2 owns query heads 2 and 3.
    heads = before.heads.copy()
    heads[:, 1, 2:] = heads[:, 1, 2:][..., ::-1]
    heads[:, :, :2] = 7.0
    got = _measure(
        before, before._replace(heads=heads), before, nodes, range(6))
    self.assertAlmostEqual(got['value'], 0.0, places=12)


class ResamplingTest(parameterized.TestCase):

  def test_facts_are_resampled_not_pairs(self):
    # In every fact the two pairs' changes cancel: only resampling of pairs
    # would see any spread.
    before = _neuron_scores(np.ones(8))
    after = _neuron_scores(np.tile([0.0, 2.0], 4))
    got = _measure(before, after, before, _first_neurons(),
                   np.repeat(list('abcd'), 2))
    self.assertEqual(got['value'], 0.0)
    np.testing.assert_allclose(got['interval'], [0, 0], atol=1e-12)
    by_pair = _measure(before, after, before, _first_neurons(), range(8))
    self.assertGreater(np.ptp(by_pair['interval']), 0.5)

  def test_interval_covers_variation_between_facts(self):
    before = _neuron_scores(np.ones(8))
    after = _neuron_scores(np.repeat([0.0, 2.0, 0.0, 2.0], 2))
    got = _measure(before, after, before, _first_neurons(),
                   np.repeat(list('abcd'), 2), resamples=400)
    # Means of 4 draws from {0, 2}: 1 - mean is -1 or 1 one time in 16 each.
    np.testing.assert_allclose(got['interval'], [-1, 1])

  def test_halves_share_no_fact(self):
    # Two facts on neurons of their own: halves have nothing in common. Pairs
    # of one fact in both halves would.
    before = _neuron_scores([1.0, 1, 0, 0], [0.0, 0, 1, 1])
    got = _measure(before, before, before, _first_neurons(), list('aabb'))
    null = got['nulls']['prompt_halves']
    self.assertEqual((null['mean'], null['level_95']), (1.0, 1.0))
    self.assertEqual(null['draws'], 50)

  def test_halves_of_like_facts_are_alike(self):
    before = _neuron_scores(np.full(6, 2.0), np.full(6, -1.0))
    got = _measure(before, _scaled(before, 0), before, _first_neurons(),
                   list('aabbcc'))
    self.assertAlmostEqual(got['nulls']['prompt_halves']['level_95'], 0.0)
    self.assertEqual(got['value'], 1.0)

  def test_quantized_base_is_a_paired_null(self):
    before, after = _random_scores(), _random_scores(seed=1)
    nodes = small.circuit(_CONFIG)
    rounded = _scaled(before, 0.9)
    got = _measure(before, after, rounded, nodes, range(6))
    null = got['nulls']['base_quantized']
    self.assertAlmostEqual(null['value'], 0.1)
    # The null is 0.1 under any weights: the difference is the value shifted.
    np.testing.assert_allclose(
        null['difference_interval'], np.array(got['interval']) - 0.1)
    got = _measure(before, after, after, nodes, range(6))
    np.testing.assert_allclose(
        got['nulls']['base_quantized']['difference_interval'], [0, 0])

  def test_each_comparison_model_gives_a_null(self):
    before, after = _random_scores(), _random_scores(seed=1)
    got = divergence.measure(
        before, after, {'one': _scaled(before, 0.9), 'other': after},
        small.circuit(_CONFIG), np.arange(6), resamples=50, seed=0)
    self.assertAlmostEqual(got['nulls']['one']['value'], 0.1)
    self.assertAlmostEqual(got['nulls']['other']['value'], got['value'])
    np.testing.assert_allclose(
        got['nulls']['other']['difference_interval'], [0, 0])

  def test_random_circuits_are_drawn_and_compared(self):
    before = _neuron_scores(np.ones(4), np.ones(4))
    after = _neuron_scores(np.ones(4), np.zeros(4))
    one = [_first_neurons(1), _first_neurons(2)]  # 0 and 1 / 2.
    drawn = []
    def draw(rng):
      drawn.append(rng.random())
      return one[len(drawn) % 2]
    got = _measure(before, after, before, _first_neurons(), list('abcd'),
                   random_nodes=draw, random_circuits=10)
    null = got['nulls']['random_circuits']
    self.assertAlmostEqual(null['mean'], 0.25)
    self.assertAlmostEqual(null['level_95'], 0.5)
    self.assertEqual((null['draws'], null['same']), (10, 0))
    self.assertLen(set(drawn), 10)
    # 0.5 under any weights, less 0.25.
    np.testing.assert_allclose(null['difference_interval'], [0.25, 0.25])
    self.assertNotIn(
        'random_circuits', _measure(
            before, after, before, _first_neurons(), list('abcd'))['nulls'])

  def test_random_circuits_that_are_the_circuit_are_counted(self):
    scores, drawn = _neuron_scores(np.ones(4), np.ones(4)), iter([1, 2] * 5)
    got = _measure(scores, scores, scores, _first_neurons(1), list('abcd'),
                   random_nodes=lambda rng: _first_neurons(next(drawn)),
                   random_circuits=10)
    self.assertEqual(got['nulls']['random_circuits']['same'], 5)

  def test_circuits_that_differ_in_key_value_heads_are_different(self):
    scores, nodes = _random_scores(), small.circuit(_CONFIG)
    other = graph.Circuit(
        neurons=nodes.neurons, heads=nodes.heads, kv_heads=~nodes.kv_heads)
    got = divergence.measure(
        scores, scores, {}, nodes, np.arange(6), resamples=50, seed=0,
        random_nodes=lambda rng: other, random_circuits=10)
    self.assertEqual(got['nulls']['random_circuits']['same'], 0)

  def test_same_seed_same_draws(self):
    before, after = _random_scores(), _random_scores(seed=1)
    run = lambda seed: _measure(
        before, after, before, small.circuit(_CONFIG), range(6), seed=seed)
    self.assertEqual(run(1), run(1))
    self.assertNotEqual(run(1)['interval'], run(2)['interval'])
    json.dumps(run(1), allow_nan=False)

  def test_a_single_fact_is_refused(self):
    before = _random_scores()
    with self.assertRaisesRegex(ValueError, 'at least 2 facts.*got 1'):
      _measure(before, before, before, small.circuit(_CONFIG), ['a'] * 6)


if __name__ == '__main__':
  absltest.main()
