"""`--mode=attribute`: scores and circuits of a model, and nothing else."""

import json
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.circuits import curve
from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_circuit
from mansu_jax.circuits.edges import edges
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests import bad_input
from tests import runs
from tests import tiny_job
from tests.circuits import golden
from tests.circuits import small
from tests.models import tiny


def _said(*args):
  """Status and output of a command line."""
  return runs.command('--mode=attribute', *args)[:2]


def _write_pairs(path, pairs):
  tiny_job.write_jsonl(path, [
      {'clean_ids': p.clean_ids, 'corrupt_ids': p.corrupt_ids,
       'answer_id': p.answer_id, 'corrupt_answer_id': p.corrupt_answer_id}
      for p in pairs])
  return path


def _arrays(folder):
  with np.load(folder / 'attribution.npz', allow_pickle=False) as z:
    return dict(z)


@absltest.skipUnless(golden.EXISTS, golden.MISSING)
class GoldenTest(absltest.TestCase):

  def test_edges_without_a_tokenizer(self):
    model, pairs, want = golden.tiny_llama()
    folder = tiny.temp_dir(self)
    path = _write_pairs(folder / 'pairs.jsonl', pairs)
    status, said = _said(
        f'--model={golden.FOLDER}/eap_tiny_llama', f'--workdir={folder}/w',
        f'--attribution_pairs_file={path}', '--attribution_level=edge',
        '--attribution_steps=5', '--circuit_edges=40',
        '--attribution_batch=3', '--circuit_random_circuits=4')
    self.assertEqual(status, 0)
    self.assertIn('attributed 8 of 8 pairs: metric 4.75 clean', said)
    self.assertRegex(said, 'curve: CPR .*, CMD .* of 110 reach 0.8')
    got = _arrays(folder / 'w')
    for name, key in (('edge', 'edge_eap_ig5_f64'),
                      ('neuron', 'neuron_eap_ig5'), ('head', 'head_eap_ig5')):
      self.assertLess(golden.largest(got[name], want[key]), 1e-5)
    for key in ('src_names', 'dst_names'):
      self.assertEqual(got[key].tolist(), want[key].tolist())
    for key in ('metric_clean', 'metric_corrupt'):
      np.testing.assert_allclose(got[key], want[key], atol=1e-4)
    fields = json.loads((folder / 'w' / 'circuit.json').read_text())
    circuit = edge_circuit.from_json(fields, model.config, 'circuit.json')
    self.assertEqual(circuit.size, fields['report']['edges'])
    self.assertLessEqual(circuit.size, 40)
    self.assertGreater(
        fields['report']['faithfulness'], fields['report']['random']['mean'])
    record = json.loads((folder / 'w' / 'record.json').read_text())
    self.assertEqual(record['circuit'], fields['report'])
    firm = record['circuit']['stability']
    self.assertEqual((firm['groups'], firm['facts']), (8, 8))
    self.assertGreater(firm['resamples']['kept']['mean'],
                       firm['random']['kept']['mean'] + 0.2)
    self.assertNotIn('phrasings', firm)
    drawn = record['circuit']['summary']['edges']
    self.assertLen(drawn, circuit.size)
    for source, target, score in drawn:
      named = fields['edges'][f'{source}->{target}']
      self.assertTrue(named['in_graph'])
      self.assertAlmostEqual(named['score'], score, delta=1e-3 * abs(score))
    self.assertContainsSubset(
        ['attribution.npz', 'circuit.json', 'flags.txt', 'plots', 'record.json',
         'report.html', 'report.md'],
        [path.name for path in (folder / 'w').iterdir()])
    self.assertIn('circuit selected again from other pairs: disjoint', said)
    self._check_as_a_file(folder, path, fields)
    self.assertIn('report: ', said)
    self.assertEqual(record['config']['mode'], 'attribute')
    with self.assertRaisesRegex(ValueError, 'holds another run'):
      runs.attribute(folder / 'w', f'--model={golden.FOLDER}/eap_tiny_llama',
                     f'--attribution_pairs_file={path}')

  def test_a_circuit_of_no_edge_is_refused(self):
    _, pairs, _ = golden.tiny_llama()
    folder = tiny.temp_dir(self)
    path = _write_pairs(folder / 'pairs.jsonl', pairs)
    code, said = bad_input.status([
        '--mode=attribute', f'--model={golden.FOLDER}/eap_tiny_llama',
        f'--workdir={folder}/w', f'--attribution_pairs_file={path}',
        '--attribution_level=edge', '--circuit_edges=1'])
    self.assertEqual(code, 2)
    self.assertRegex(said, (
        'mansu_jax: --circuit_edges=1 and --circuit_edge_selection=greedy'
        ' select no path of edges .* wanted .* --circuit_edge_selection=top, or'
        ' a larger --circuit_per_layer_cap'))


  def _check_as_a_file(self, folder, path, fields):
    """Measured from its file a circuit is the same."""
    status, said = _said(
        f'--model={golden.FOLDER}/eap_tiny_llama', f'--workdir={folder}/given',
        f'--attribution_pairs_file={path}', '--attribution_level=edge',
        f'--circuit_file={folder}/w/circuit.json', '--attribution_batch=3',
        '--circuit_random_circuits=4')
    self.assertEqual(status, 0)
    self.assertIn('curve: CPR', said)
    got = json.loads((folder / 'given' / 'circuit.json').read_text())
    self.assertEqual(got['edges'], fields['edges'])
    self.assertEqual(got['report']['selection'], 'file')
    for key in ('faithfulness', 'edges', 'curve', 'cpr',
                'smallest_faithful_prefix', 'candidates'):
      self.assertEqual(got['report'][key], fields['report'][key], key)
    self.assertNotIn('stability', got['report'])
    self.assertNotIn('edge', _arrays(folder / 'given'))
    hashes = json.loads((folder / 'given' / 'hashes.json').read_text())
    self.assertIn(f'{folder}/w/circuit.json', hashes)
    self.assertIn('circuit, not selected here',
                  (folder / 'given' / 'report.md').read_text())


@pytest.mark.slow
class StoredTest(absltest.TestCase):

  def test_the_model_is_attributed_as_it_is_stored(self):
    folder = tiny.temp_dir(self)
    config, params, tokenizer = tiny_job.base()
    tiny_job.make(folder / 'job')
    hf_io.write(folder / 'half', config,
                hf_io.as_stored(params, 'bfloat16'), tokenizer)
    few = [f'--data_forget={folder}/job/forget.jsonl',
           '--attribution_pairs=24', '--attribution_steps=1',
           '--circuit_random_circuits=1', '--circuit_curve_circuits=0',
           '--circuit_resamples=0', '--circuit_budget=0.1']
    record = runs.attribute(folder / 'rounded', f'--model={folder}/job/model',
                            '--export_dtype=bfloat16', *few)
    runs.attribute(folder / 'written', f'--model={folder}/half', *few)
    self.assertIn('rounded to bfloat16', record['model']['weights_note'])
    rounded, written = _arrays(folder / 'rounded'), _arrays(folder / 'written')
    for name, values in written.items():
      if values.dtype.kind == 'f':  # By two programs.
        np.testing.assert_allclose(
            rounded[name], values, rtol=0, atol=1e-6, err_msg=name)
      else:
        np.testing.assert_array_equal(rounded[name], values, err_msg=name)


class QuestionsTest(absltest.TestCase):

  @pytest.mark.slow
  def test_nodes_from_questions(self):
    folder = tiny.temp_dir(self)
    job = tiny_job.make(folder / 'job')
    kept = [f for f in job if not f.startswith((
        '--unlearn', '--edit', '--fisher', '--data_text', '--eval',
        '--data_retain', '--data_held'))]
    record = runs.attribute(
        folder / 'w', *kept, '--attribution_level=neuron_and_head',
        '--eval_bootstrap=200')
    got = _arrays(folder / 'w')
    shapes = graph.shapes(loading.load(f'{folder}/job/model').config)
    for name, kind in (('neuron', 'neurons'), ('head', 'heads'),
                       ('kv_head', 'kv_heads')):
      self.assertEqual(got[name].shape, shapes[kind])
    self.assertNotIn('edge', got)
    self.assertLen(got['metric_clean'], 24)
    self.assertGreater(record['metric']['clean'], record['metric']['corrupt'])
    written = json.loads((folder / 'w' / 'circuit.json').read_text())
    self.assertEqual(written['report'], record['circuit'])
    report = record['circuit']
    points = report['curve']
    self.assertEqual(
        points[-1]['size'], report['smallest_faithful_prefix']['candidates'])
    self.assertAlmostEqual(points[-1]['faithfulness'], 1.0, delta=1e-5)
    # A key/value head is its query heads, and no node of its own.
    self.assertEqual(points[-1]['size'], sum(
        int(np.prod(shapes[kind])) for kind in ('neurons', 'heads')))
    self.assertNotIn('kv_heads', written['nodes'])
    self.assertEqual(points[0]['size'], 0)
    self.assertEqual(points[0]['faithfulness'], report['faithfulness_of_none'])
    self.assertEqual(
        report['cpr'], curve.cpr([p['faithfulness'] for p in points]))
    firm = record['circuit']['stability']
    chance = firm['random']['kept']['interval'][1]
    self.assertGreater(firm['halves']['kept']['mean'], chance)
    self.assertCountEqual(firm['phrasings'], ['near', 'far'])
    for entry in firm['phrasings'].values():
      self.assertGreater(entry['kept']['interval'][0], chance)
      self.assertGreater(entry['faithfulness']['value'],
                         entry['random_faithfulness']['value'])
    report = (folder / 'w' / 'report.md').read_text()
    self.assertIn('near phrasings', report)
    self.assertIn('plots/circuit.svg', report)

    resumed = runs.attribute(
        folder / 'off', *kept, '--attribution_level=neuron_and_head',
        '--circuit_resamples=0')
    self.assertNotIn('stability', resumed['circuit'])
    for key in ('faithfulness', 'random', 'nodes', 'summary'):
      self.assertEqual(resumed['circuit'][key], record['circuit'][key])


@pytest.mark.slow
class EdgesFromQuestionsTest(absltest.TestCase):
  """Curve, prefix, contrast, range and cap on the trained tiny model."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = pathlib.Path(
        cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.flags = [f for f in tiny_job.make(cls.folder / 'job') if f.startswith((
        '--model', '--data_forget', '--attribution', '--circuit_pairs'))] + [
            f'--data_retain={cls.folder}/job/retain.jsonl',
            '--attribution_level=edge', '--circuit_edges=60',
            '--circuit_random_circuits=2']
    cls.config = loading.load(f'{cls.folder}/job/model').config
    cls.count = int(edges.is_edge(cls.config).sum())

  def _run(self, name, *more):
    """The record, and the circuit that was written."""
    record = runs.attribute(self.folder / name, *self.flags, *more)
    fields = json.loads((self.folder / name / 'circuit.json').read_text())
    self.assertEqual(fields['report'], record['circuit'])
    return record['circuit'], edge_circuit.from_json(
        fields, self.config, 'circuit.json')

  def test_curve_and_smallest_prefix(self):
    report, _ = self._run('curve', '--circuit_curve_circuits=2')
    points = report['curve']
    self.assertEqual([p['share'] for p in points], [*curve.SHARES])
    self.assertEqual([p['size'] for p in points],
                     [int(s * self.count) for s in curve.SHARES])
    self.assertAlmostEqual(points[-1]['faithfulness'], 1.0, delta=1e-5)
    values = [p['faithfulness'] for p in points]
    self.assertEqual(report['cpr'], curve.cpr(values))
    self.assertEqual(report['cmd'], curve.cmd(values))
    for point in points:
      band = point['random']
      self.assertLessEqual(band['min'], band['mean'])
      self.assertLessEqual(band['mean'], band['max'])
    self.assertLen(report['random_curves']['cpr'], 2)
    # The best edges carry more than as many of any: else scores mean nothing.
    self.assertLess(report['cmd'], min(report['random_curves']['cmd']))
    prefix = report['smallest_faithful_prefix']
    self.assertEqual(prefix['candidates'], self.count)
    reached, size = self._run(
        'prefix', f'--circuit_edges={prefix["edges"]}',
        '--circuit_curve_circuits=0')[0], prefix['edges']
    self.assertEqual(reached['edges_before_pruning'], size)
    self.assertGreaterEqual(reached['faithfulness'], prefix['target'])
    self.assertIsNone(reached['curve'][0]['random'])

  def test_contrast(self):
    plain, before = self._run('plain', '--circuit_curve_circuits=0')
    contrasted, after = self._run(
        'contrast', '--circuit_curve_circuits=0', '--circuit_contrast=2')
    np.testing.assert_array_equal(before.scores, after.scores)
    self.assertGreater((before.chosen & ~after.chosen).sum(), 3)
    self.assertEqual(plain['candidates'], contrasted['candidates'])

  def test_range_and_cap(self):
    layer = lambda place: place // (3 * self.config.num_heads + 1)
    report, circuit = self._run(
        'range', '--circuit_curve_circuits=0', '--circuit_first_layer=1',
        '--circuit_per_layer_cap=0.2', '--circuit_edges=20')
    targets = np.flatnonzero(circuit.chosen.any(0))
    self.assertGreater(circuit.size, 0)
    self.assertGreaterEqual(layer(targets).min(), 1)
    self.assertLess(report['candidates'], self.count / 2)
    self.assertEqual(report['curve'][-1]['size'], report['candidates'])


class RefusalsTest(bad_input.Refusals):

  def setUp(self):
    super().setUp()
    self.pairs = _write_pairs(self.folder / 'pairs.jsonl', small.pairs())
    self.flags = ['--mode=attribute', f'--model={self.job}/model',
                  f'--attribution_pairs_file={self.pairs}',
                  '--attribution_level=edge']

  @parameterized.parameters(
      ('--unlearn_steps=7', ('--unlearn_steps=7 has no effect in --mode=attribute',
                             'applies to --mode=unlearn', 'Leave it out')),
      ('--base=x', ('--base=x has no effect', 'applies to --mode=audit')),
      ('--quant_schemes=fp4,int8', (
          '--quant_schemes=fp4,int8 has no effect', '--mode=unlearn')),
      ('--fail_on_verdict', ('--fail_on_verdict has no effect',)),
      ('--eval_cad_pairs=4', ('--eval_cad_pairs=4 has no effect',)),
      ('--eval_questions=9', ('--eval_questions=9 has no effect',)),
      ('--eval_bootstrap=200', ('--eval_bootstrap=200 has no effect',),
       '--circuit_resamples=0'),
      ('--data_forget=x', ('--data_forget=x has no effect', 'pairs come from')),
      ('--data_retain=x', ('--data_retain=x has no effect', 'contrast')),
      ('--data_heldout=x', ('--data_heldout=x has no effect',)),
      ('--data_heldout_text=x', ('--data_heldout_text=x has no effect',)),
      ('--data_text_window=9', ('--data_text_window=9 has no effect',)),
      ('--circuit_file=no.json', ("'no.json' does not exist",)),
      ('--circuit_file=x.json', ('--circuit_file=x.json has no effect',
                                 '=head'), '--attribution_level=head'),
      ('--circuit_file=x.json', ('--circuit_file=x.json has no effect',
                                 '=unlearn'), '--mode=unlearn'),
      ('--circuit_edges=7', ('--circuit_edges=7 has no effect',
                             'circuit_file=x.json'), '--circuit_file=x.json'),
      ('--circuit_resamples=7', ('--circuit_resamples=7 has no effect',),
       '--circuit_file=x.json'),
      ('--eval_bootstrap=200', ('--eval_bootstrap=200 has no effect',),
       '--circuit_file=x.json'),
      ('--circuit_edges=99999', ('--circuit_edges=99999', 'at most', 'Lower')),
      ('--circuit_budget=0.1', ('--circuit_budget=0.1 has no effect',)),
      ('--circuit_selection=random', (
          '--circuit_selection=random has no effect', '=edge')),
      ('--attribution_level=head', ('--circuit_edges=7 has no effect',
                                    '=head'), '--circuit_edges=7'),
      ('--attribution_level=head', ('no train questions of the retain set',),
       '--circuit_contrast=0.5'),
      ('--circuit_contrast=0.5', ('--circuit_contrast=0.5 needs retain pairs',
                                  'no train questions of the retain set',
                                  '--data_retain')),
      ('--circuit_first_layer=7', ('--circuit_first_layer=7 and',)),
      ('--circuit_per_layer_cap=0.01', ('--circuit_edges=200 exceeds', 'cap')),
      ('--circuit_curve_circuits=-1', ('--circuit_curve_circuits=-1',)),
      ('--mode=unlearn', ('--circuit_curve_circuits=3 has no effect',
                          '=unlearn'), '--circuit_curve_circuits=3',
       '--attribution_level=neuron'),
      ('--circuit_edges=0', ('--circuit_edges=0',)),
      ('--circuit_resamples=-1', ('--circuit_resamples=-1',)),
      ('--attribution_pairs_file=', ('needs pairs of prompts',
                                     '--attribution_pairs_file=FILE')),
      ('--attribution_pairs=0', ('=0 must be at least 1',)),
      ('--attribution_pairs_file=no.jsonl', ('no.jsonl',)))
  def test_flags(self, flag, message, *more):
    self.refused(flag, *more, message=message)

  def test_a_bad_circuit_file_before_the_weights(self):
    path = self.folder / 'circuit.json'
    path.write_text('{"cfg": {"n_layers": 99}, "edges": {}}')
    self.refused(f'--circuit_file={path}', message=('n_layers = 99', 'has 3'))
    path.write_text('{"cfg": {}, "edges": {}}')
    self.refused(f'--circuit_file={path}', message=('holds 0 edges', 'Select'))

  def test_other_phrasings_are_looked_at_before_long_work(self):
    lines = (self.job / 'forget.jsonl').read_text().splitlines()
    asked = [json.loads(line) for line in lines]
    question = next(q for q in asked if q['use'] == 'far')
    question['prompt'] = 'word ' * 150 + 'is'
    path = self.folder / 'long.jsonl'
    tiny_job.write_jsonl(path, asked)
    args = ['--attribution_pairs_file=', '--attribution_level=neuron',
            f'--data_forget={path}']
    self.refused(*args, message=('long.jsonl', 'tokens', 'wanted at most'))

  def test_questions_without_a_tokenizer(self):
    config, params, _ = tiny_job.base(train=False)
    hf_io.write(self.folder / 'bare', config, params, None)
    self.refused(
        f'--model={self.folder}/bare', '--attribution_pairs_file=',
        f'--data_forget={self.job}/forget.jsonl',
        message=('has no tokenizer', 'pairs as token ids'))

  def test_ids_that_the_model_does_not_know(self):
    config, params, _ = tiny_job.base(train=False)
    hf_io.write(self.folder / 'bare', config, params, None)
    path = self.folder / 'high.jsonl'
    tiny_job.write_jsonl(path, [{
        'clean_ids': [1, 99999], 'corrupt_ids': [1, 2], 'answer_id': 3,
        'corrupt_answer_id': 4}])
    self.refused(
        f'--model={self.folder}/bare', f'--attribution_pairs_file={path}',
        message=('high.jsonl', 'token id 99999', 'Encode the pair'))


if __name__ == '__main__':
  absltest.main()
