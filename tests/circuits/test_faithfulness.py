"""Faithfulness against patched forward passes in loops."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.circuits import curve
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from tests.circuits import small
from tests.reference import circuit_naive

_CONFIG = small.config()
_KINDS = {'neuron': ('mlp_hidden',), 'head': ('head_out',),
          'neuron_and_head': ('mlp_hidden', 'head_out')}


@functools.cache
def _pairs(same_last_token=False):
  return small.elicited(_CONFIG, small.params(_CONFIG), same_last_token)


def _batch(same_last_token):
  return pair_batches.pack(_pairs(same_last_token), 3)[0]


def _naive(params, pairs, circuit, level, layers):
  """Faithfulness of a circuit, one pair and one unit at a time."""
  run = lambda tokens, **kwargs: circuit_naive.last_logits(
      tokens, params, theta=_CONFIG.rope_theta, eps=_CONFIG.norm_eps,
      **kwargs)
  members = {'mlp_hidden': circuit.neurons, 'head_out': circuit.heads}
  keep = {}
  for site in _KINDS[level]:
    keep[site] = members[site].copy()
    for layer in range(_CONFIG.num_layers):
      if layer not in layers:
        keep[site][layer] = True
  totals = np.zeros(3)  # Patched, clean, corrupted.
  for pair in pairs:
    clean, corrupt = map(np.array, (pair.clean_ids, pair.corrupt_ids))
    corrupt_logits, taps = run(corrupt)
    logits = [run(clean, keep=keep, other=taps)[0], run(clean)[0],
              corrupt_logits]
    for i, row in enumerate(logits):
      totals[i] += row[pair.answer_id] - row[pair.corrupt_answer_id]
  return (totals[0] - totals[2]) / (totals[1] - totals[2])


class FaithfulnessTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = small.params(_CONFIG)
    cls.whole = small.random_circuit(_CONFIG, share=2.0)
    cls.empty = graph.empty(_CONFIG)

  def _measure(self, level, layers=range(2), **batch):
    return faithfulness.of_nodes(
        _CONFIG, self.params, _batch(**batch), level, layers)

  @parameterized.product(
      level=('neuron', 'head', 'neuron_and_head'),
      layers=(range(0, 2), range(1, 2)))
  def test_equals_the_loops(self, level, layers):
    pairs = _pairs(same_last_token=False)
    measure = self._measure(level, layers, same_last_token=False)
    for circuit in (small.random_circuit(_CONFIG, 0.5), self.empty):
      want = _naive(self.params, pairs, circuit, level, layers)
      self.assertGreater(min(abs(want), abs(want - 1)), 1e-3)
      self.assertAlmostEqual(measure(circuit), want, delta=1e-3)

  @parameterized.parameters('neuron', 'head', 'neuron_and_head')
  @pytest.mark.medium
  def test_all_candidates_give_faithfulness_1(self, level):
    measure = self._measure(level, same_last_token=False)
    self.assertEqual(measure(self.whole), 1.0)

  def test_nodes_outside_level_and_layers_do_not_count(self):
    measure = self._measure('neuron', range(1, 2), same_last_token=True)
    some = small.random_circuit(_CONFIG, 0.5)
    neurons = some.neurons.copy()
    neurons[0] = ~neurons[0]
    other = graph.Circuit(
        neurons=neurons, heads=~some.heads, kv_heads=~some.kv_heads)
    self.assertEqual(measure(some), measure(other))

  @parameterized.parameters('head', 'neuron_and_head')
  def test_the_empty_circuit_is_0_if_all_heads_are_in_play(self, level):
    # Only heads carry anything to the last position. So 0 is exact where both
    # prompts end alike; with other last tokens there is their own path to the
    # logits, and in layers that are not in play there are heads left clean.
    alike = self._measure(level, same_last_token=True)
    self.assertAlmostEqual(alike(self.empty), 0.0, delta=1e-5)
    unlike = self._measure(level, same_last_token=False)
    self.assertGreater(abs(unlike(self.empty)), 1e-2)
    some_layers = self._measure(level, range(1, 2), same_last_token=True)
    self.assertGreater(abs(some_layers(self.empty)), 1e-2)

  def test_an_empty_neuron_circuit_leaves_attention_its_share(self):
    measure = self._measure('neuron', same_last_token=True)
    self.assertGreater(abs(measure(self.empty)), 1e-2)

  def test_pairs_of_weight_zero_do_not_count(self):
    circuit = small.random_circuit(_CONFIG, 0.5)
    pairs = _pairs()
    batch = pair_batches.pack(pairs, 3)[0]._replace(
        weight=np.array([1, 1, 0], np.float32))
    got, want = (faithfulness.of_nodes(
        _CONFIG, self.params, b, 'neuron', range(2))(circuit)
                 for b in (batch, pair_batches.pack(pairs[:2], 2)[0]))
    self.assertAlmostEqual(got, want, delta=1e-5)
    self.assertNotAlmostEqual(self._measure(
        'neuron', same_last_token=False)(circuit), want, delta=1e-3)


class SpreadTest(parameterized.TestCase):

  def test_spread_is_the_difference(self):
    self.assertEqual(faithfulness.spread(5.0, -1.0, 3), 6.0)
    self.assertEqual(faithfulness.spread(5.0, 4.9, 3), 5.0 - 4.9)

  @parameterized.parameters((5.0, 4.9999), (5.0, 6.0), (2.0, 2.0), (0.0, 0.0))
  def test_spread_refuses_differences_within_noise(self, clean, corrupt):
    with self.assertRaisesRegex(ValueError, (
        r'first 4 pairs .*\(--circuit_pairs\).* on the clean and .* wanted')):
      faithfulness.spread(clean, corrupt, 4)

  @pytest.mark.medium
  def test_pairs_of_the_same_prompts(self):
    pairs = [dataclasses.replace(p, corrupt_ids=p.clean_ids) for p in _pairs()]
    measure = faithfulness.of_nodes(
        _CONFIG, small.params(_CONFIG), pair_batches.pack(pairs, 3)[0],
        'neuron', range(2))
    with self.assertRaisesRegex(ValueError, 'first 3 pairs'):
      measure(graph.empty(_CONFIG))


class PrefixTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.measure = faithfulness.of_nodes(
        _CONFIG, small.params(_CONFIG), _batch(same_last_token=True),
        'neuron_and_head', range(2))
    rng = np.random.default_rng(0)
    scores = {kind: rng.normal(size=shape)
              for kind, shape in graph.shapes(_CONFIG).items()}
    self.ranking = select.rank(
        scores, 'neuron_and_head', run_config.CircuitConfig(), _CONFIG)

  def _value(self, size):
    return self.measure(select.prefix(self.ranking, size, _CONFIG))

  def _smallest(self, target):
    return curve.smallest(self._value, target, self.ranking.node.size)

  def test_reaches_the_target_and_one_node_less_does_not(self):
    for target in (0.3, 0.8):
      size = self._smallest(target)
      self.assertBetween(size, 1, self.ranking.node.size)
      self.assertGreaterEqual(self._value(size), target)
      self.assertLess(self._value(size - 1), target)

  def test_none_where_the_empty_circuit_reaches_it(self):
    target = self._value(0) - 1e-3
    self.assertEqual(self._smallest(target), 0)

  def test_a_target_that_all_nodes_miss(self):
    self.assertEqual(self._smallest(1.5), -1)


if __name__ == '__main__':
  absltest.main()
