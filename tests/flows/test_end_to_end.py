"""End-to-end runs on the tiny job: their files hold the right figures."""

import collections
import html.parser
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
from unittest import mock
import xml.etree.ElementTree

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import orbax.checkpoint as ocp
import transformers

from mansu_jax.circuits import graph
from mansu_jax.models.io import edit_file
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.stages.circuit import scoring
from mansu_jax.stages.judge import erasure
from mansu_jax.stages.judge import evaluation
from mansu_jax.unlearn import loop
from tests import bad_input
from tests import runs
from tests import tiny_job
from tests.models import tiny

_SPLITS = (
    'forget', 'forget_paraphrase', 'forget_far', 'retain', 'retain_heldout')
_MODELS, _PRECISIONS = ('base', 'unlearned'), ('fp', 'nf4')
_STAGES = (
    'attribution', 'circuit', 'stability', 'references_forget',
    'references_retain', 'references_text', 'fisher', 'unlearn',
    *(f'evaluation_{m}_{p}' for m in _MODELS for p in _PRECISIONS),
    'hidden_share_answers', 'readability', 'cad', 'as_nc',
    'samples')


class _Page(html.parser.HTMLParser):
  """Collects what a page would load."""

  def __init__(self):
    super().__init__()
    self.loads, self.tags = [], set()

  def handle_starttag(self, tag, attrs):
    self.tags.add(tag)
    self.loads += [v for k, v in attrs if k in ('src', 'href', 'srcset') and v
                   and not v.startswith(('#', 'data:'))]


class RunTest(parameterized.TestCase):
  """One run from a flagfile: its files, figures and resumption."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tiny.class_dir(cls)
    cls.flagfile = cls.folder / 'job.flags'
    cls.flagfile.write_text('# A job.\n' + '\n'.join(
        tiny_job.make(cls.folder / 'job')) + '\n')
    cls.root = cls.folder / 'run'
    cls.returned = runs.run(cls.root, f'--flagfile={cls.flagfile}')
    cls.record = json.loads((cls.root / 'record.json').read_text())

  def test_the_workdir_holds_what_the_contract_names_and_no_more(self):
    self.assertEqual(sorted(p.name for p in self.root.iterdir()), [
        'answers.jsonl', 'checkpoints', 'circuit.json', 'edit.safetensors',
        'environments.json', 'flags.txt', 'hashes.json', 'model', 'plots',
        'record.json', 'report.html', 'report.md'])

  def test_the_returned_record_is_the_written_one(self):
    self.assertEqual(report.as_json(self.returned), self.record)
    self.assertNotIn('not_finite', self.record)

  def test_accuracy_of_each_split_model_and_precision(self):
    accuracy = self.record['accuracy']
    self.assertEqual(tuple(accuracy), _SPLITS)
    for split in _SPLITS:
      for model in _MODELS:
        self.assertEqual(tuple(accuracy[split][model]), _PRECISIONS)
        for entry in accuracy[split][model].values():
          low, high = entry['interval']
          self.assertBetween(entry['value'], 0, 1)
          self.assertBetween(entry['value'], low, high)
          self.assertGreater(entry['n'], 20)

  def test_answers_add_up_to_the_accuracies(self):
    right, ids = collections.defaultdict(list), []
    for line in (self.root / 'answers.jsonl').read_text().splitlines():
      row = json.loads(line)
      ids.append(row['id'])
      for model, precisions in row['models'].items():
        for precision, got in precisions.items():
          right[row['split'], model, precision].append(got['correct'])
          self.assertEqual(got['correct'], got['margin'] > 0)
          self.assertEqual(got['correct'], got['choice'] == row['answer'])
    self.assertLen(set(ids), len(ids))
    for (split, model, precision), answers in right.items():
      entry = self.record['accuracy'][split][model][precision]
      self.assertAlmostEqual(np.mean(answers), entry['value'], places=6)
      self.assertLen(answers, entry['n'])
    self.assertLen(right, len(_SPLITS) * 4)

  def test_gaps_follow_from_the_accuracies(self):
    right = lambda model, precision: sum(
        self.record['accuracy'][s][model][precision]['value']
        * self.record['accuracy'][s][model][precision]['n']
        for s in ('forget_paraphrase', 'forget_far'))
    asked = sum(self.record['accuracy'][s]['base']['fp']['n']
                for s in ('forget_paraphrase', 'forget_far'))
    gap = {m: (right(m, 'nf4') - right(m, 'fp')) / asked for m in _MODELS}
    wanted = {'ptq_gap': gap['unlearned'], 'ptq_gap_base': gap['base'],
              'ptq_gap_adjusted': gap['unlearned'] - gap['base']}
    for name, value in wanted.items():
      self.assertEqual(tuple(self.record[name]), ('nf4',))
      entry = self.record[name]['nf4']
      self.assertAlmostEqual(entry['value'], value, places=6)
      self.assertBetween(entry['value'], *entry['interval'])

  def test_perplexity_of_each_kind_and_of_all(self):
    by_text = self.record['perplexity_by_text']
    self.assertEqual(set(by_text), {'harbour', 'village_unseen'})
    for table in (self.record['perplexity'], *by_text.values()):
      for model in _MODELS:
        self.assertEqual(tuple(table[model]), _PRECISIONS)
        for value in table[model].values():
          self.assertBetween(value, 1, 100)

  def test_properties_have_value_interval_threshold_and_verdict(self):
    properties = self.record['properties']
    self.assertEqual(tuple(properties), ('F', 'R', 'Q', 'S'))
    for letter, entry in properties.items():
      measured = letter != 'S'  # This run skips the hidden share.
      self.assertIsInstance(entry['value'], float if measured else type(None))
      self.assertIsInstance(entry['threshold'], float)
      self.assertLen(entry['interval'], 2)
      self.assertIn(entry['passed'], (True, False, 'inconclusive'))
    self.assertIn(self.record['verdict']['passed'],
                  (True, False, 'inconclusive'))

  def test_erasure_measures_have_nulls(self):
    models = {'base_quantized', 'suppression'}
    for name, nulls in (
        ('cad', {'prompt_halves', 'random_circuits', *models}),
        ('as_nc', {'prompt_halves', 'random_circuits', 'base_quantized'}),
        ('readability', {'prompt_halves', 'guessing', *models})):
      found = self.record[name]
      self.assertEqual(tuple(found['by_precision']), _PRECISIONS[1:])
      for entry in (found, *found['by_precision'].values()):
        self.assertIsInstance(entry['value'], float)
        self.assertEqual(set(entry['nulls']), nulls)

  def test_readability_separates_hidden_from_erased_answers(self):
    control = self.record['suppression_control']
    questions = self.record['readability']['questions']
    self.assertAlmostEqual(
        control['answered'], control['wanted'], delta=2 / questions)
    found = self.record['readability']
    self.assertGreater(found['nulls']['suppression']['value'], 0.5)
    # The best layer of a tiny model may read all that the base does; taken
    # together those before the last read less.
    inner = {name: np.mean(shares[1:-1])
             for name, shares in found['by_layer'].items()}
    self.assertLess(inner['unlearned'], inner['suppression'] - 0.05)

  def test_copying_the_circuit_back_undoes_the_edit(self):
    found = self.record['copy_back']
    self.assertIs(found['confined'], True)
    for parts in found['by_precision'].values():
      self.assertEqual(parts['circuit']['answered'], parts['base']['answered'])
      self.assertEqual(parts['circuit']['share'], 1.0)
      self.assertEqual(parts['rest']['share'], 0.0)
      self.assertContainsSubset(('best_half', 'random_half_4'), parts)
    self.assertEqual(
        set(found['best_half_less_random']), set(found['by_precision']))

  def test_stages_are_timed(self):
    stages = self.record['stages']
    self.assertContainsSubset(
        ('load', 'attribution', 'fisher', 'unlearn', 'export', 'evaluate'),
        [s['name'] for s in stages])
    for stage in stages:
      self.assertEqual(
          set(stage), {'name', 'seconds', 'compile_seconds', 'peak_bytes',
                       'tokens', 'tokens_per_second'})
      self.assertBetween(stage['compile_seconds'], 0, stage['seconds'])
      self.assertGreater(stage['peak_bytes'], 2**20)

  def test_config_environment_and_data_are_recorded(self):
    config = self.record['config']
    self.assertEqual(config['unlearn']['steps'], 60)
    self.assertEqual(config['data']['forget'],
                     [str(self.folder / 'job' / 'forget.jsonl')])
    self.assertEqual(self.record['environment']['jax'], jax.__version__)
    for name, digest in self.record['data']['sha256'].items():
      self.assertEqual(digest, runs.sha256(pathlib.Path(name)))
    self.assertLen(self.record['data']['sha256'], 6)
    self.assertEqual(self.record['model']['sha256'], runs.sha256(
        self.folder / 'job' / 'model' / 'model.safetensors'))

  def test_the_knowledge_is_forgotten_and_the_rest_kept(self):
    value = lambda split, model, precision: self.record['accuracy'][split][
        model][precision]['value']
    for precision in _PRECISIONS:
      for split in _SPLITS:
        self.assertGreaterEqual(value(split, 'base', precision), 0.95)
      # From 1.00; measured 0.29 to 0.35, where guessing is 0.25.
      for split in ('forget', 'forget_paraphrase', 'forget_far'):
        self.assertLess(value(split, 'unlearned', precision), 0.55)
      for split in ('retain', 'retain_heldout'):
        self.assertGreater(value(split, 'unlearned', precision), 0.9)

  def test_moved_weights_change_their_codes_within_the_circuit(self):
    base = runs.tensors(self.folder / 'job' / 'model')
    got = runs.tensors(self.root / 'model')
    moved = runs.check_floor(self, base, got)
    for name, weights in got.items():
      landed = weights != base[name]
      if landed.any():  # On their new codes' own values, to the bit.
        np.testing.assert_array_equal(
            weights[landed], runs.nf4(weights)[0][landed])
    circuit = runs.read_circuit(self.root, self._model_config())
    self.assertTrue(circuit.neurons.any())
    runs.check_only_circuit_moved(self, base, got, circuit)
    total = sum(x.size for x in base.values())
    shares = self.record['survival']['nf4']
    self.assertAlmostEqual(shares['moved'], moved / total, places=9)
    self.assertAlmostEqual(shares['changed_codes'], moved / total, places=9)
    self.assertEqual(shares['moved_unchanged'], 0)
    self.assertGreater(moved, 0.01 * total)

  def _model_config(self):
    return loading.load(self.root / 'model').config

  def test_the_circuit_keeps_to_its_budget(self):
    config = self._model_config()
    circuit = runs.read_circuit(self.root, config)
    total = sum(x.size for x in runs.tensors(self.root / 'model').values())
    share = graph.num_weights(circuit, config) / total
    self.assertAlmostEqual(
        self.record['circuit']['share_of_weights'], share, places=9)
    self.assertBetween(share, 0.09, 0.1)

  def test_attribution_finds_what_carries_the_facts(self):
    circuit = self.record['circuit']
    self.assertGreater(circuit['faithfulness'],
                       circuit['random']['max'] + 0.2)

  def test_transformers_reads_the_exported_config_and_tokenizer(self):
    config = transformers.AutoConfig.from_pretrained(self.root / 'model')
    self.assertEqual(config.model_type, 'llama')
    self.assertEqual(config.num_hidden_layers, 3)
    names = [self.folder / 'job' / 'model', self.root / 'model']
    base, got = [transformers.AutoTokenizer.from_pretrained(n) for n in names]
    text = 'The capital of Alvaria is Abelton.\nCrop: figs'
    self.assertEqual(got(text)['input_ids'], base(text)['input_ids'])
    self.assertEqual(got.decode(got(text)['input_ids']), text)

  def test_our_loader_reads_the_exported_model(self):
    model = loading.load(self.root / 'model')
    base = loading.load(self.folder / 'job' / 'model')
    self.assertEqual(model.config, base.config)
    made = edit_file.apply(self.root / 'edit.safetensors', base)
    jax.tree.map(np.testing.assert_array_equal, made, model.params)

  @absltest.skipUnless(importlib.util.find_spec('torch'), 'torch is missing')
  def test_torch_gives_the_same_logits(self):
    import torch  # pylint: disable=g-import-not-at-top
    model = loading.load(self.root / 'model')
    ids = np.array(model.tokenizer(
        ['The capital of Alvaria is', 'The farmers of Lomar grow']
        )['input_ids'])
    logits = tiny.logits(model.config, model.params, ids)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        self.root / 'model', dtype=torch.float32)
    with torch.no_grad():
      wanted = reference(torch.tensor(ids)).logits.numpy()
    np.testing.assert_allclose(logits, wanted, atol=2e-4)

  def test_checkpoints_hold_the_weights_that_were_exported(self):
    folder = self.root / 'checkpoints'
    self.assertEqual(
        sorted(p.name for p in folder.iterdir()), sorted(_STAGES))
    saved = ocp.PyTreeCheckpointer().restore(folder / 'unlearn')
    gate = np.asarray(saved['theta']['layers']['mlp']['gate'])  # [S, D]
    circuit = runs.read_circuit(self.root, self._model_config())
    got = runs.tensors(self.root / 'model')
    np.testing.assert_array_equal(gate, np.concatenate([
        got[f'model.layers.{layer}.mlp.gate_proj.weight'][chosen]
        for layer, chosen in enumerate(circuit.neurons)]))
    self.assertLen(saved['history']['loss'], 60)

  def test_the_page_loads_nothing(self):
    text = (self.root / 'report.html').read_text()
    page = _Page()
    page.feed(text)
    self.assertEmpty(page.loads)
    self.assertNotIn('script', page.tags)
    self.assertNotRegex(text, r'@import|url\((?!["\']?(#|data:))')
    self.assertContainsSubset({'html', 'table', 'svg'}, page.tags)

  def test_the_page_and_the_markdown_show_the_figures(self):
    value = self.record['accuracy']['forget']['unlearned']['nf4']['value']
    for name in ('report.html', 'report.md'):
      self.assertIn(f'{value:.3f}', (self.root / name).read_text())

  def test_plots_that_the_markdown_links_exist(self):
    linked = re.findall(
        r'\]\((plots/[^)]+)\)', (self.root / 'report.md').read_text())
    self.assertNotEmpty(linked)
    for name in linked:
      tree = xml.etree.ElementTree.parse(self.root / name)
      self.assertRegex(tree.getroot().tag, r'svg$')

  def test_flags_repeat_the_run_bit_for_bit_elsewhere(self):
    text = (self.root / 'flags.txt').read_text()
    self.assertNotRegex(text, r'--(no)?(workdir|resume)\b')
    self.assertNotIn(str(self.root), text)
    again = self.folder / 'again'
    record = runs.run(again, f'--flagfile={self.root}/flags.txt')
    self._check_same(again, record)
    for name in ('circuit.json', 'flags.txt'):
      self.assertEqual((again / name).read_bytes(),
                       (self.root / name).read_bytes())

  def test_a_finished_run_is_restored_without_training(self):
    copy = self.folder / 'copy'
    shutil.copytree(self.root, copy)
    elsewhere = self.record['environment'] | {'devices': ['TPU v5'] * 4}
    (copy / 'environments.json').write_text(json.dumps([elsewhere]))
    with (mock.patch.object(loop, 'run', side_effect=AssertionError),
          self.assertLogs() as logs):
      record = runs.run(copy, f'--flagfile={self.flagfile}')
    self.assertIn('4 x TPU v5 then, 1 x cpu now', ''.join(logs.output))
    self.assertEqual(record['environment'].pop('earlier'), [elsewhere])
    self._check_same(copy, record)

  def _check_same(self, root, record):
    self.assertEqual(runs.figures(record), runs.figures(self.record))
    self.assertEqual(runs.sha256(root / 'model' / 'model.safetensors'),
                     runs.sha256(self.root / 'model' / 'model.safetensors'))

  def _check_same_end(self, root, record):
    self._check_same(root, record)
    self.assertEqual(
        sorted(p.name for p in (root / 'checkpoints').iterdir()),
        sorted(_STAGES))

  def test_run_finishes_the_step_before_it_stops(self):
    root, check, checked = self.folder / 'preempted', loop._check, []
    def tell(history, *rest):
      checked.append(history[-1]['step'])
      if checked[-1] == 23:
        os.kill(os.getpid(), signal.SIGTERM)
      check(history, *rest)
    args = [f'--flagfile={self.flagfile}', f'--workdir={root}']
    with mock.patch.object(loop, '_check', tell):
      status, said = bad_input.status(args)
    self.assertEqual(status, 75)
    self.assertRegex(said, 'stopped by SIGTERM; the same command resumes')
    steps = root / 'checkpoints' / 'unlearn_steps'
    self.assertIn('23', [p.name for p in steps.iterdir()])
    with (mock.patch.object(scoring, 'mean_node_scores', None),
          mock.patch.object(loop, '_check', tell)):
      record = runs.run(root, *args[:1])
    self.assertEqual(checked[checked.index(23) + 1], 24)
    self._check_same_end(root, record)

  @parameterized.parameters(
      (evaluation.Evaluator, '__call__', 2,
       ['evaluation_base_fp']),
      (erasure, '_as_nc', 1, ['readability', 'cad']))
  def test_a_stopped_stage_keeps_measurements(self, where, name, call, kept):
    root, calls, whole = self.folder / f'stopped_{name}', [], getattr(
        where, name)
    def stop(*args, **options):
      calls.append(name)
      if len(calls) == call:
        raise KeyboardInterrupt
      return whole(*args, **options)
    with mock.patch.object(where, name, stop):
      with self.assertRaises(KeyboardInterrupt):
        runs.run(root, f'--flagfile={self.flagfile}')
    self.assertContainsSubset(
        kept, [p.name for p in (root / 'checkpoints').iterdir()])
    before = len(calls)
    with mock.patch.object(where, name, stop):
      record = runs.run(root, f'--flagfile={self.flagfile}')
    self.assertLen(calls, before + (3 if call == 2 else 1))
    self._check_same_end(root, record)

