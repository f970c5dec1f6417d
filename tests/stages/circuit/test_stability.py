"""The stage resamples, halves and rewords pairs as documented."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits import select
from mansu_jax.circuits import stability as stability_lib
from mansu_jax.circuits.edges import edges
from mansu_jax.config import attribution as attribution_config
from mansu_jax.config import circuit as circuit_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import questions
from mansu_jax.data import splits
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import edge_selection
from mansu_jax.stages.circuit import edge_stability
from mansu_jax.stages.circuit import node_circuit
from mansu_jax.stages.circuit import node_stability
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import scoring
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.circuit import stability
from tests import tiny_job
from tests.circuits import small

_CONFIG = small.config()


def _settings(level='neuron', for_edit=True, **circuit):
  return settings_lib.Settings(
      attribution=attribution_config.AttributionConfig(
          level=level, steps=2, batch=4),
      circuit=circuit_config.CircuitConfig(**{'resamples': 20, 'edges': 30}
                                           | circuit),
      bootstrap=200, for_edit=for_edit)


def _model():
  return loading.LoadedModel(
      config=_CONFIG, params=small.params(_CONFIG), tokenizer=None,
      source={})


def _pairs(count=12):
  """Pairs of `count` facts whose answers the model prefers."""
  rng, made = np.random.default_rng(0), []
  while len(made) < count:
    clean, corrupt = rng.integers(1, 29, (2, 5)).tolist()
    made.append(pairs_lib.AttributionPair(
        tuple(clean), tuple(corrupt), *rng.permutation(29)[:2].tolist(),
        fact=f'fact {len(made) % (count // 2)}'))
  scores = _scores(made)
  return [pair if clean > 0 else pairs_lib.AttributionPair(
      pair.clean_ids, pair.corrupt_ids, pair.corrupt_answer_id, pair.answer_id,
      pair.fact) for pair, clean in zip(made, scores.metric_clean)]


def _scores(pairs):
  return eap_ig.score_pairs(
      _CONFIG, small.params(_CONFIG), pair_batches.pack(pairs, 4), steps=2)


def _nodes(settings, pairs, scores):
  """A circuit of 40 % of each level's nodes, selected and described."""
  def choose(means):
    ranking = select.rank(
        {kind: np.abs(scores) for kind, scores in means.items()},
        settings.attribution.level, settings.circuit, _CONFIG)
    return select.prefix(ranking, int(0.4 * ranking.node.size), _CONFIG)

  circuit = choose(eap_ig.node_means(scores, _CONFIG))
  groups = stability_lib.group_facts([p.fact for p in pairs])
  make_measure = functools.partial(
      node_circuit.make_measure, settings, _model())
  return circuit, node_stability.make(
      settings, _model(), circuit, choose, make_measure, groups, pairs, scores)


class NodesTest(parameterized.TestCase):

  @parameterized.product(level=list(graph.LEVEL_KINDS), first=(0, 1))
  def test_rows_and_kinds_are_the_same_nodes(self, level, first):
    nodes = node_stability.Nodes(_settings(level, first_layer=first), _CONFIG)
    circuit = small.random_circuit(
        _CONFIG, 0.5, kinds=graph.LEVEL_KINDS[level])
    for kind in graph.KINDS:
      circuit[kind][:first] = False
    back = nodes.unflatten(nodes.flatten(circuit))
    for kind in graph.KINDS:
      np.testing.assert_array_equal(back[kind], circuit[kind])

  @parameterized.parameters(*graph.LEVEL_KINDS)
  def test_all_pairs_select_the_reference(self, level):
    settings, pairs = _settings(level), _pairs()
    circuit, selected = _nodes(settings, pairs, _scores(pairs))
    method = selected.method
    again = graph.Circuit(**method.unflatten(
        method.select(selected.own.sums.mean())).__dict__)
    for kind in graph.KINDS:
      np.testing.assert_array_equal(again[kind], circuit[kind])
    drawn = method.unflatten(method.draw(np.random.default_rng(0)))
    for kind in graph.KINDS:
      np.testing.assert_array_equal(
          drawn[kind].sum(1), circuit[kind].sum(1))

  def test_scoring_again_gives_the_same_sums(self):
    settings, pairs = _settings('neuron_and_head'), _pairs()
    _, selected = _nodes(settings, pairs, _scores(pairs))
    again = selected.method.score(pairs)
    self.assertEqual(again.pairs, pairs)
    np.testing.assert_allclose(
        again.sums.totals, selected.own.sums.totals, atol=1e-5)

  def test_unanswered_pairs_are_left_out(self):
    pairs = _pairs()
    _, selected = _nodes(_settings(), pairs, _scores(pairs))
    turned = [pairs_lib.AttributionPair(
        p.clean_ids, p.corrupt_ids, p.corrupt_answer_id, p.answer_id, p.fact)
              for p in pairs[:5]]
    found = selected.method.score(turned + pairs[5:])
    self.assertEqual(found.pairs, pairs[5:])
    self.assertEqual(found.sums.counts.sum(), len(pairs) - 5)


class MeasureTest(absltest.TestCase):

  def _selected(self, facts=6):
    """Group i scores candidate i; its half selects it."""
    groups = {f'fact {i}': i for i in range(facts)}
    pairs = [pairs_lib.AttributionPair((1,), (2,), 1, 2, f)
             for f in groups for _ in range(2)]
    method = stability.Method(
        groups=groups, reference=np.ones(facts, bool),
        select=lambda means: means > 0, draw=lambda rng: rng.random(facts) < .5,
        score=None, make_run=None, unflatten=lambda row: row)
    sums = stability_lib.Sums(
        np.eye(facts, dtype=np.float32), np.full(facts, 2))
    return stability.Selected(method, stability.GroupScores(
        pairs, np.full(2 * facts, 3.0), np.full(2 * facts, -1.0), sums))

  def test_each_pair_runs_the_circuit_of_the_other_half(self):
    """A pair is answered by a circuit that holds its own candidate."""
    selected = self._selected()
    index = np.array([selected.method.groups[p.fact]
                      for p in selected.own.pairs])
    run = lambda row: np.where(row[index], 3.0, -1.0)
    got, times = stability.measure(_settings(), selected, run)
    self.assertEqual(got['halves']['faithfulness']['value'], 0)
    self.assertEqual(got['halves']['own_faithfulness']['value'], 1)
    self.assertEqual(got['halves']['kept']['mean'], 0)
    self.assertAlmostEqual(got['random']['kept']['mean'], 0.5, delta=0.2)
    self.assertAlmostEqual(
        times.mean(), got['resamples']['kept']['mean'])

  def test_measure_accepts_metrics_of_fewer_pairs(self):
    run = lambda row: np.full(4, 1.0)  # Of the first four pairs.
    got, _ = stability.measure(_settings(), self._selected(), run)
    self.assertEqual(got['halves']['faithfulness']['n'], 4)
    self.assertEqual(got['halves']['faithfulness']['value'], 0.5)

  def test_too_few_facts_give_a_reason(self):
    got, times = stability.measure(
        _settings(), self._selected(facts=3), lambda row: np.ones(6))
    self.assertIn('3 facts', got['reason'])
    self.assertIsNone(times)


class RewordedTest(absltest.TestCase):

  def test_the_same_pairs_are_the_same_circuit(self):
    settings, pairs = _settings(), _pairs()
    _, selected = _nodes(settings, pairs, _scores(pairs))
    got = stability.compare_phrasings(
        settings, selected, {'near': pairs})['near']
    self.assertEqual(got['kept']['value'], 1)
    self.assertAlmostEqual(got['spearman']['value'], 1, places=4)
    self.assertEqual(got['faithfulness'], got['own_faithfulness'])
    self.assertEqual(got['answered'], got['pairs'])
    self.assertNotEqual(got['faithfulness'], got['random_faithfulness'])

  def test_other_pairs_share_less(self):
    settings, pairs = _settings(), _pairs()
    _, selected = _nodes(settings, pairs, _scores(pairs))
    others = [pairs_lib.AttributionPair(
        p.clean_ids[::-1], p.corrupt_ids[::-1], p.answer_id,
        p.corrupt_answer_id, p.fact) for p in pairs]
    got = stability.compare_phrasings(
        settings, selected, {'far': others})['far']
    self.assertGreaterEqual(got['facts'], 4)
    self.assertLess(got['kept']['value'], 1)

  def test_pairs_that_are_not_answered_give_a_reason(self):
    settings, pairs = _settings(), _pairs()
    _, selected = _nodes(settings, pairs, _scores(pairs))
    turned = [pairs_lib.AttributionPair(
        p.clean_ids, p.corrupt_ids, p.corrupt_answer_id, p.answer_id, p.fact)
              for p in pairs]
    got = stability.compare_phrasings(
        settings, selected, {'near': turned})['near']
    self.assertEqual((got['answered'], got['facts']), (0, 0))
    self.assertIn('answers 0 pairs on 0 facts', got['reason'])

  def test_pairs_of_the_same_prompts_give_a_reason(self):
    settings, pairs = _settings(), _pairs()
    _, selected = _nodes(settings, pairs, _scores(pairs))
    alike = [dataclasses.replace(p, corrupt_ids=p.clean_ids) for p in pairs]
    got = stability.compare_phrasings(
        settings, selected, {'near': alike})['near']
    self.assertIn('Faithfulness cannot be measured', got['reason'])


class EdgesTest(absltest.TestCase):

  def _scored(self, settings, pairs, groups):
    return edge_stability.score(settings, _model(), pairs, groups)

  def test_group_sums_add_up_to_the_scores_of_pairs(self):
    pairs = _pairs(6) + small.pairs()[:1]  # Of other lengths too.
    groups = stability_lib.group_facts([p.fact for p in pairs], 2)
    got = self._scored(_settings('edge'), pairs, groups)
    totals = np.zeros_like(got.sums.totals)
    for pair in got.pairs:
      batch = pair_batches.pack([pair], 1, one_per_row=True)[0]
      found = edges.pair_scores(
          _CONFIG, small.params(_CONFIG), batch,
          points=edges.eap_ig_points(2))
      self.assertGreater(found.metric_clean[0], 0)
      totals[groups[pair.fact]] += found.edges[0][edges.is_edge(_CONFIG)]
    np.testing.assert_allclose(got.sums.totals, totals, atol=1e-4)
    self.assertEqual(got.sums.counts.sum(), len(got.pairs))

  @pytest.mark.slow
  def test_all_groups_select_the_reference_and_run_it(self):
    settings, pairs = _settings('edge'), _pairs()
    groups = stability_lib.group_facts([p.fact for p in pairs], 5)
    own = self._scored(settings, pairs, groups)
    whole = scoring.unflatten(own.sums.mean(), _CONFIG)
    circuit = edge_selection.select_edges(
        settings.circuit, _CONFIG, whole)
    selected = edge_stability.make(
        settings, _model(), circuit, groups, own)
    method = selected.method
    np.testing.assert_array_equal(
        method.unflatten(method.select(own.sums.mean())), circuit.chosen)
    every = np.ones(own.sums.totals.shape[1], bool)
    run = method.make_run(own.pairs)
    np.testing.assert_allclose(run(every), own.clean, atol=1e-4)
    np.testing.assert_allclose(run(~every), own.corrupt, atol=1e-4)
    got, times = stability.measure(settings, selected, run)
    self.assertEqual(got['groups'], 5)
    self.assertEqual(times.shape, circuit.chosen.shape)
    self.assertEqual(
        stability.compare_phrasings(
            settings, selected, {'near': own.pairs})['near']['kept']['value'],
        1)


class PhrasingsTest(absltest.TestCase):

  def _splits(self):
    folder = self.create_tempdir().full_path
    tiny_job.make(folder, train=False)
    asked = questions.read_questions(f'{folder}/forget.jsonl')
    by_use = lambda use: [q for q in asked if q.use == use]
    return splits.Splits(
        forget_train=by_use('train'), retain_train=[], text=[], evaluation={
            'forget_paraphrase': by_use('near'), 'forget_far': by_use('far')})

  def test_near_and_far_questions_make_pairs(self):
    _, _, tokenizer = tiny_job.base(train=False)
    made = self._splits()
    got = prompt_pairs.other_phrasings(
        _settings(for_edit=False), made, tokenizer)
    self.assertCountEqual(got, ['near', 'far'])
    trained = {tuple(tokenizer(q.prompt)['input_ids'])
               for q in made.forget_train}
    for pairs in got.values():
      self.assertGreaterEqual(len({p.fact for p in pairs}), 4)
      self.assertNoCommonElements(trained, [p.clean_ids for p in pairs])

  def test_no_other_phrasings_if_none_are_compared(self):
    _, _, tokenizer = tiny_job.base(train=False)
    made = self._splits()
    without = _settings(for_edit=False, resamples=0)
    from_file = dataclasses.replace(
        _settings(for_edit=False),
        attribution=attribution_config.AttributionConfig(
            pairs_file='pairs.jsonl'))
    for settings in (_settings(), without, from_file):
      self.assertEmpty(prompt_pairs.other_phrasings(settings, made, tokenizer))


if __name__ == '__main__':
  absltest.main()
