"""Attribution with few candidate nodes, and with pairs of unequal length."""

from absl.testing import absltest
import numpy as np
import pytest

from mansu_jax.circuits import faithfulness
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges
from mansu_jax.report.sections import attribution_summary
from mansu_jax.stages.circuit import edge_attribution
from tests import bad_input
from tests import runs
from tests import tiny_job
from tests.models import tiny


class FewNodesTest(absltest.TestCase):
  """Random circuits that equal the circuit, and pairs of unequal length."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tiny.class_dir(cls)
    tiny_job.make(cls.folder / 'job')
    names = list(zip(tiny_job.COUNTRIES, tiny_job.CAPITALS))
    lines = [{
        'clean': f'The capital of {a} is', 'corrupt': f'The capital of {b} is',
        'answer': x, 'corrupt_answer': y, 'fact': a}
             for (a, x), (b, y) in zip(names, names[1:])]
    lines[3]['corrupt'] = lines[3]['corrupt'].replace('The', 'The main')
    cls.pairs = cls.folder / 'pairs.jsonl'
    tiny_job.write_jsonl(cls.pairs, lines)
    cls.flags = [
        f'--model={cls.folder}/job/model',
        f'--attribution_pairs_file={cls.pairs}',
        '--attribution_level=head', '--attribution_steps=1',
        '--attribution_batch=8', '--circuit_curve_circuits=2',
        '--circuit_resamples=10', '--eval_bootstrap=100', '--circuit_pairs=8',
        '--attribution_skip_unequal']

  def _run(self, budget):
    root = self.folder / str(budget)
    with self.assertLogs(level='WARNING') as logs:
      record = runs.attribute(root, *self.flags, f'--circuit_budget={budget}')
    return (record, '\n'.join(logs.output), (root / 'report.md').read_text())

  @pytest.mark.slow
  def test_all_heads(self):
    record, logged, report = self._run(0.2)
    found = record['circuit']
    self.assertEqual(found['nodes'], {'heads': 12})
    self.assertEqual(found['random']['same'], 20)
    self.assertEqual(found['stability']['random']['same'], 10)
    for part, compared in (
        (found['random'], 'Comparison of faithfulness: 20 of 20 random'),
        (found['stability']['random'],
         'Comparison of overlap: 10 of 10 random')):
      self.assertStartsWith(part['warning'], compared)
      self.assertIn(part['warning'], logged)
      self.assertIn(part['warning'], report.replace('\n', ' '))
    self.assertIn('random circuits of the same shape are identical to the'
                  ' circuit', report)
    self.assertIn('20 of 20 identical to the circuit', '\n'.join(
        attribution_summary.lines(record)))
    *_, last = found['curve']
    self.assertEqual(last['random']['same'], 2)
    self.assertEqual(found['pairs_skipped'], 1)
    self.assertIn('1 of 23 pairs are left out', logged)
    self.assertIn('1 of the file dropped', report)

  @pytest.mark.slow
  def test_some_random_circuits(self):
    record, _, report = self._run(0.145)
    found = record['circuit']
    self.assertEqual(found['nodes'], {'heads': 11})
    self.assertBetween(found['random']['same'], 1, 19)
    told = f'{found["random"]["same"]} of 20 random circuits equal'
    self.assertIn(told, report)
    self.assertIn(f'; {found["random"]["same"]} of them identical', report)

  def test_pairs_that_do_not_fit_are_refused_without_the_flag(self):
    code, said = bad_input.status([
        '--mode=attribute', *self.flags[:-1], f'--workdir={self.folder}/no'])
    self.assertEqual(code, 2)
    self.assertIn('1 of 23 pairs', said)
    self.assertRegex(said, 'line 4 has . and .. Choose')

  def test_random_circuits_of_edges(self):
    shape = tiny.config()
    real = edges.is_edge(shape)
    circuit = edge_circuit.EdgeCircuit(real, np.zeros(real.shape))
    drawn = [real.copy(), np.zeros_like(real)] * 2
    measure = faithfulness.Faithfulness(
        metrics=lambda chosen: chosen.mean(keepdims=True), total=np.sum,
        clean=1.0, corrupt=0.0, pairs=1)
    report = edge_attribution.describe(shape, circuit, measure, drawn)
    self.assertEqual(report['random']['same'], 2)
    self.assertStartsWith(
        report['random']['warning'],
        'Comparison of faithfulness: 2 of 4 random circuits equal')


if __name__ == '__main__':
  absltest.main()
