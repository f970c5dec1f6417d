"""A circuit from a file is measured as a selected circuit is."""

import dataclasses
import json

from absl.testing import absltest
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges
from mansu_jax.config import attribution as attribution_config
from mansu_jax.config import circuit as circuit_config
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import edge_attribution
from mansu_jax.stages.circuit import edge_file
from mansu_jax.stages.circuit import outputs
from mansu_jax.stages.circuit import settings as settings_lib
from tests.circuits import small

_CONFIG = small.config()


def _settings(**circuit):
  return settings_lib.Settings(
      attribution=attribution_config.AttributionConfig(level='edge', steps=2),
      circuit=circuit_config.CircuitConfig(**circuit), for_edit=False)


def _model():
  return loading.LoadedModel(
      config=_CONFIG, params=small.params(_CONFIG), tokenizer=None,
      source={})


def _pairs():
  """Pairs whose metric is higher on the clean prompts."""
  return [dataclasses.replace(
      p, answer_id=p.corrupt_answer_id, corrupt_answer_id=p.answer_id)
          for p in small.pairs()]


def _scores():
  drawn = np.random.default_rng(0).normal(size=edges.is_edge(_CONFIG).shape)
  return np.where(edges.is_edge(_CONFIG), drawn, 0).astype(np.float32)


def _scored(edges_=None):
  pairs = _pairs()
  metric = np.ones(len(pairs))
  return outputs.Scored(
      answered=metric > 0, metric_clean=metric, metric_corrupt=-metric,
      pairs=pairs, token_roles=np.zeros((2, 2, 3)), edges=edges_,
      means={kind: np.ones(shape)
             for kind, shape in graph.shapes(_CONFIG).items()})


class MeasureTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = f'{self.create_tempdir().full_path}/circuit.json'
    self.options = {'edges': 90, 'random_circuits': 2, 'curve_circuits': 1}

  def _measured(self, fields, **more):
    with open(self.path, 'w', encoding='utf-8') as file:
      json.dump(fields, file)
    return edge_file.find(_settings(
        file=self.path, resamples=0, **self.options | more), _model(),
                          _scored())

  def _found(self, **more):
    return edge_attribution.find(
        _settings(resamples=0, **self.options | more), _model(),
        _scored(outputs.EdgeScores(means=_scores())))

  def test_a_circuit_file_is_measured_as_a_selected_circuit(self):
    for how in ('greedy', 'top'):
      own = self._found(edge_selection=how)
      fields = edge_circuit.to_json(own.edges, _CONFIG)
      got = self._measured(fields, edge_selection=how)
      np.testing.assert_array_equal(got.edges.chosen, own.edges.chosen)
      self.assertEqual(got.report['selection'], 'file')
      # Its random circuits are as large as the file's, which is pruned.
      for key in own.report.keys() - {
          'selection', 'edges_before_pruning', 'random'}:
        self.assertEqual(got.report[key], own.report[key], key)

  def test_unconnected_edges_are_pruned(self):
    own = self._found()
    chosen, real = own.edges.chosen.copy(), edges.is_edge(_CONFIG)
    chosen[edges.source_names(_CONFIG).index('a0.h3')] = False
    for place, name in enumerate(edges.target_names(_CONFIG)):
      if name.startswith('a0.h3<'):
        chosen[:, place] = real[:, place]
    held = dataclasses.replace(own.edges, chosen=chosen)
    report = self._measured(edge_circuit.to_json(held, _CONFIG)).report
    self.assertEqual(report['edges_before_pruning'], chosen.sum())
    self.assertLess(report['edges'], chosen.sum())

  def test_without_all_scores_there_is_no_curve(self):
    fields = edge_circuit.to_json(self._found().edges, _CONFIG)
    fields['edges'] = {
        name: edge for name, edge in fields['edges'].items()
        if edge['in_graph']}
    report = self._measured(fields).report
    self.assertContainsSubset(['faithfulness', 'random'], report)
    self.assertNoCommonElements(
        ['curve', 'cpr', 'smallest_faithful_prefix'], report)
    self.assertRegex(report['no_curve'], 'circuit.json scores .* of .* edges')

  def test_an_empty_circuit_is_refused(self):
    fields = edge_circuit.to_json(self._found().edges, _CONFIG)
    for edge in fields['edges'].values():
      edge['in_graph'] = False
    with self.assertRaisesRegex(ValueError, 'holds 0 edges.*apply_greedy'):
      self._measured(fields)


if __name__ == '__main__':
  absltest.main()
