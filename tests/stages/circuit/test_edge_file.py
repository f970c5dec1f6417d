"""A circuit of a file is measured as if we had selected it."""

import dataclasses
import json

from absl.testing import absltest
import numpy as np

from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges
from mansu_jax.config import run as run_config
from mansu_jax.models.io import loading
from mansu_jax.stages.circuit import edge_attribution
from mansu_jax.stages.circuit import edge_file
from tests.circuits import small

_CONFIG = small.config()


def _config(**circuit):
  return run_config.RunConfig(
      mode='attribute',
      attribution=run_config.AttributionConfig(level='edge', steps=2),
      circuit=run_config.CircuitConfig(**circuit))


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


class MeasureTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.path = f'{self.create_tempdir().full_path}/circuit.json'
    self.options = {'edges': 90, 'random_circuits': 2, 'curve_circuits': 1}

  def _measured(self, fields, **more):
    with open(self.path, 'w', encoding='utf-8') as file:
      json.dump(fields, file)
    return edge_file.measure(_config(
        file=self.path, **self.options | more), _model(), _pairs())

  def _found(self, **more):
    return edge_attribution.find(
        _config(**self.options | more), _model(), _pairs(), _scores())

  def test_it_is_measured_as_if_selected(self):
    for how in ('greedy', 'top'):
      own = self._found(edge_selection=how)
      fields = edge_circuit.to_json(own.circuit, _CONFIG)
      got = self._measured(fields, edge_selection=how)
      np.testing.assert_array_equal(got.circuit.chosen, own.circuit.chosen)
      self.assertEqual(got.report['selection'], 'file')
      # Its random circuits are as large as the file's, which is pruned.
      for key in own.report.keys() - {
          'selection', 'edges_before_pruning', 'random'}:
        self.assertEqual(got.report[key], own.report[key], key)

  def test_edges_that_lead_nowhere_are_dropped(self):
    own = self._found()
    chosen, real = own.circuit.chosen.copy(), edges.is_edge(_CONFIG)
    chosen[edges.source_names(_CONFIG).index('a0.h3')] = False
    for place, name in enumerate(edges.target_names(_CONFIG)):
      if name.startswith('a0.h3<'):
        chosen[:, place] = real[:, place]
    held = dataclasses.replace(own.circuit, chosen=chosen)
    report = self._measured(edge_circuit.to_json(held, _CONFIG)).report
    self.assertEqual(report['edges_before_pruning'], chosen.sum())
    self.assertLess(report['edges'], chosen.sum())

  def test_without_all_scores_there_is_no_curve(self):
    fields = edge_circuit.to_json(self._found().circuit, _CONFIG)
    fields['edges'] = {
        name: edge for name, edge in fields['edges'].items()
        if edge['in_graph']}
    report = self._measured(fields).report
    self.assertContainsSubset(['faithfulness', 'random'], report)
    self.assertNoCommonElements(
        ['curve', 'cpr', 'smallest_faithful_prefix'], report)
    self.assertRegex(report['no_curve'], 'circuit.json scores .* of .* edges')

  def test_a_circuit_of_nothing_is_refused(self):
    fields = edge_circuit.to_json(self._found().circuit, _CONFIG)
    for edge in fields['edges'].values():
      edge['in_graph'] = False
    with self.assertRaisesRegex(ValueError, 'holds 0 edges.*apply_greedy'):
      self._measured(fields)


if __name__ == '__main__':
  absltest.main()
