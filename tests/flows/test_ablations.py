"""Every option of a run has its stated effect, end to end."""

import functools
import json
import pathlib
import re
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mansu_jax.eval import perplexity
from mansu_jax.models.io import loading
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs
from tests import runs
from tests import tiny_job

pytestmark = pytest.mark.slow

_BRIEF = (
    '--unlearn_steps=12', '--unlearn_learning_rate=4e-2',
    '--eval_questions=12', '--eval_text_windows=2', '--eval_generations=0',
    '--eval_cad_pairs=0', '--eval_bootstrap=100', '--attribution_steps=1',
    '--attribution_pairs=12', '--circuit_random_circuits=1',
    '--circuit_resamples=0')
_WHOLE = ('--eval_cad_pairs=4', '--circuit_resamples=20')
_GRADDIFF = ('--method=graddiff', '--unlearn_loss=ascent',
             '--unlearn_learning_rate=1e-3')
_NPO = ('--method=npo',)


@functools.cache
def _made():
  return tempfile.TemporaryDirectory()


@functools.cache
def _folder():
  """Holds the job and the runs of this module."""
  return pathlib.Path(_made().name)


@functools.cache
def _run(*args):
  """(workdir, record) of a brief run; one a set of flags."""
  flags = tiny_job.make(_folder() / 'job')
  root = pathlib.Path(tempfile.mkdtemp(dir=_folder())) / 'run'
  return root, runs.run(root, *flags, *_BRIEF, *args)


def _base():
  return runs.tensors(_folder() / 'job' / 'model')


def _checkpoint(root, name):
  return ocp.PyTreeCheckpointer().restore(root / 'checkpoints' / name)


class AblationTest(parameterized.TestCase):

  def _check_edit(self, root, floored=True):
    """The floor and the circuit hold; returns how many weights moved."""
    base, got = _base(), runs.tensors(root / 'model')
    circuit = runs.read_circuit(root, loading.load(root / 'model').config)
    runs.check_only_circuit_moved(self, base, got, circuit)
    moved = sum(int((got[n] != base[n]).sum()) for n in base)
    self.assertGreater(moved, 100)
    if floored:
      runs.check_floor(self, base, got)
    return moved

  def test_no_floor_leaves_edits_that_rounding_undoes(self):
    root, record = _run('--edit_floor=none')
    self._check_edit(root, floored=False)
    shares = record['survival']['nf4']
    self.assertGreater(shares['moved_unchanged'], 0.001)
    self.assertGreater(shares['moved'],
                       _run()[1]['survival']['nf4']['moved'])
    with self.assertRaises(AssertionError):  # So the check can fail.
      runs.check_floor(self, _base(), runs.tensors(root / 'model'))

  @parameterized.parameters(
      '--edit_floor=lift', '--edit_landing=boundary',
      '--nounlearn_quantizer_in_loop', '--edit_projection=none',
      '--unlearn_loss=answer_swap', '--unlearn_loss=group_marginal',
      '--unlearn_loss=rmu', '--unlearn_loss=dpo',
      '--unlearn_choice_kl_weight=1', '--unlearn_optimizer=lars',
      '--circuit_contrast=1', '--unlearn_swapped_batch=4')
  @pytest.mark.long
  def test_the_floor_holds_and_the_option_matters(self, option):
    root, _ = _run(option)
    self._check_edit(root)
    self.assertNotEqual(
        runs.sha256(root / 'model' / 'model.safetensors'),
        runs.sha256(_run()[0] / 'model' / 'model.safetensors'))

  def test_lift_raises_small_updates_that_hold_leaves_in_the_latent(self):
    small = '--unlearn_learning_rate=2e-3'
    root, record = _run('--edit_floor=lift', small)
    self._check_edit(root)
    moved = record['survival']['nf4']['moved']
    self.assertGreater(moved, 2 * _run(small)[1]['survival']['nf4']['moved'])

  def test_a_random_circuit_is_another_of_the_same_shape(self):
    root, record = _run('--circuit_selection=random', *_WHOLE)
    self._check_edit(root)
    other, attributed = _run(*_WHOLE)
    config = loading.load(root / 'model').config
    got, wanted = [
        runs.read_circuit(r, config).neurons for r in (root, other)]
    np.testing.assert_array_equal(got.sum(1), wanted.sum(1))
    self.assertLess((got & wanted).sum(), 0.8 * wanted.sum())
    self.assertLess(record['circuit']['faithfulness'],
                    attributed['circuit']['faithfulness'])
    self.assertIn('stability', attributed['circuit'])
    self.assertNotIn('stability', record['circuit'])

  @parameterized.parameters(
      ('head', {'heads', 'kv_heads'}, ('_attn',)),
      ('neuron_and_head', {'neurons', 'heads', 'kv_heads'},
       ('_attn', 'mlp')))
  def test_levels_edit_their_kinds_of_node(self, level, kinds, places):
    root, _ = _run(
        f'--attribution_level={level}', '--circuit_budget=0.2', *_WHOLE)
    self._check_edit(root)
    nodes = json.loads((root / 'circuit.json').read_text())['nodes']
    self.assertEqual(set(nodes), kinds)
    base, got = _base(), runs.tensors(root / 'model')
    moved = [name for name in base if (got[name] != base[name]).any()]
    for place in places:
      self.assertTrue(any(place in name for name in moved), place)
    if level == 'head':
      self.assertFalse(any('mlp' in name for name in moved))

  def test_edges_edit_the_weights_at_their_ends(self):
    root, record = _run(
        '--attribution_level=edge', '--circuit_budget=0.2',
        '--circuit_edges=12', *_WHOLE)
    self._check_edit(root)
    edges = json.loads((root / 'circuit.json').read_text())['edges']
    self.assertLen(edges, record['circuit']['edges'])
    self.assertLessEqual(len(edges), 12)
    self._check_edge_report(record)
    base, got = _base(), runs.tensors(root / 'model')
    moved = {name for name in base if (got[name] != base[name]).any()}
    ends = [re.match(r'(\w+)[.\w]*->(\w+)(?:\.h\d+<(\w)>)?', edge).groups()
            for edge in edges]
    may = set()
    for source, target, part in ends:
      if source[0] in 'am' and source[1:].isdecimal():
        may.add((int(source[1:]), 'o_' if source[0] == 'a' else 'down_'))
      if part:
        may.add((int(target[1:]), f'{part}_'))
      elif target != 'logits':
        may |= {(int(target[1:]), 'gate_'), (int(target[1:]), 'up_')}
    self.assertNotEmpty(moved)
    for name in moved:
      layer = int(name.split('.')[2])
      self.assertTrue(any(
          layer == at and f'{leaf}proj' in name for at, leaf in may), name)

  def _check_edge_report(self, record):
    """The run reports its edges as `--mode=attribute` does."""
    alone = runs.attribute(
        _folder() / 'edges', *[f for f in tiny_job.make(
            _folder() / 'job') if f.startswith((
                '--model', '--data_forget', '--data_retain', '--circuit_pairs',
                '--attribution_batch'))],
        '--attribution_steps=1', '--attribution_pairs=12',
        '--attribution_level=edge', '--circuit_edges=12',
        '--circuit_random_circuits=1', '--circuit_curve_circuits=0',
        '--circuit_resamples=20', '--eval_bootstrap=100')['circuit']
    found = record['circuit']
    self.assertAlmostEqual(
        found['edge_faithfulness'], alone['faithfulness'], places=6)
    self.assertEqual(found['edges'], alone['edges'])
    firm = alone['stability']
    del firm['phrasings']
    self.assertEqual(found['stability'].keys(), firm.keys())
    for kind in ('resamples', 'halves', 'random'):
      self.assertEqual(
          found['stability'][kind]['kept'], firm[kind]['kept'], kind)

  def test_graddiff_moves_all_weights_and_few_codes(self):
    root, record = _run(*_GRADDIFF, *_WHOLE)
    self.assertIn('stability', record['circuit'])  # Of the attributed one.
    base, got = _base(), runs.tensors(root / 'model')
    for name in base:
      self.assertTrue((got[name] != base[name]).any(), name)
    shares = record['survival']['nf4']
    self.assertGreater(shares['moved'], 0.5)
    self.assertGreater(shares['moved_unchanged'], shares['changed_codes'])
    undone = record['copy_back']
    self.assertIs(undone['confined'], False)
    for precision in ('fp', 'nf4'):
      self.assertContainsSubset(
          ('circuit', 'rest', 'random_0'), undone['by_precision'][precision])

  def test_adapters_are_merged_into_every_matrix(self):
    root, record = _run(*_NPO, '--unlearn_lora_rank=2',
                        '--unlearn_learning_rate=3e-2')
    base, got = _base(), runs.tensors(root / 'model')
    for name in base:
      moved = (got[name] != base[name]).any()
      self.assertEqual(moved, '_proj.' in name, name)
    edit = got['model.layers.1.mlp.up_proj.weight'] - base[
        'model.layers.1.mlp.up_proj.weight']
    values = np.linalg.svd(edit, compute_uv=False)
    self.assertLess(values[2], 1e-3 * values[1])  # Of rank 2.
    self.assertEqual(record['trained'] | {'weights': 0}, {
        'part': 'lora', 'weights': 0, 'dtype': 'float32', 'rank': 2,
        'alpha': 16.0, 'most_steps': 12})
    shares = record['survival']['nf4']
    self.assertGreater(shares['moved'], 0.9 * sum(
        x.size for n, x in base.items() if '_proj.' in n) / sum(
            x.size for x in base.values()))
    self.assertGreater(shares['changed_codes'], 0)
    self.assertNotIn('not_finite', record)

  def test_weights_in_bfloat16_until_little_is_known(self):
    root, record = _run(
        *_NPO, '--unlearn_weights_dtype=bfloat16', '--unlearn_stop_forget=0.7',
        '--unlearn_learning_rate=1e-2', '--unlearn_kl_weight=0')
    for name, leaf in runs.tensors(root / 'model').items():
      np.testing.assert_array_equal(
          leaf, leaf.astype(ml_dtypes.bfloat16).astype(np.float32), name)
    *before, last = record['history']['probe']
    self.assertLessEqual(last, 0.7)
    self.assertNotEmpty(before)  # The base knows its facts.
    self.assertGreater(min(before), 0.7)
    self.assertLess(len(before), 11)
    self.assertEqual(
        record['trained']['theta_0'], 'the base rounded to bfloat16')
    report = (root / 'report.md').read_text()
    self.assertIn('stored in bfloat16 between steps', report)
    self.assertIn('of at most 12 steps, since the probe reached', report)
    self.assertIn('Forget probe', (root / 'report.html').read_text())
    self.assertNotIn('not_finite', record)

  def test_the_retain_terms_alone_forget_nothing(self):
    root, record = _run('--method=retain_only', '--unlearn_loss=none')
    self._check_edit(root)
    self.assertEqual(set(record['history']['forget']), {0.0})
    self.assertNotIn('not_finite', record)
    forget = lambda found: found['accuracy']['forget']['unlearned']['fp']
    self.assertGreater(
        forget(record)['value'], forget(_run()[1])['value'] + 0.2)

  def test_layers_out_of_range_are_left_alone(self):
    root, _ = _run('--circuit_first_layer=1', '--circuit_last_layer=1')
    self._check_edit(root)
    base, got = _base(), runs.tensors(root / 'model')
    for name in base:
      if 'layers.1.' not in name:
        np.testing.assert_array_equal(got[name], base[name])

  @parameterized.parameters('bfloat16', 'float16')
  def test_codes_change_after_the_cast_of_the_export(self, dtype):
    root, record = _run(f'--export_dtype={dtype}')
    self.assertIn(f'rounded to {dtype}', record['model']['weights_note'])
    base, got = _base(), runs.tensors(root / 'model')
    kind = {'bfloat16': ml_dtypes.bfloat16, 'float16': np.float16}[dtype]
    self.assertTrue(all(x.dtype == kind for x in got.values()))
    widen = lambda tree: {
        k: x.astype(kind).astype(np.float32) for k, x in tree.items()}
    self.assertGreater(runs.check_floor(self, widen(base), widen(got)), 100)

  def test_what_is_measured_is_what_is_exported(self):
    root, record = _run('--export_dtype=bfloat16')
    config = runs.parse(*tiny_job.make(_folder() / 'job'), *_BRIEF)
    model = loading.load(config.model, ml_dtypes.bfloat16)
    found = inputs.read(config)
    measured = evaluation.measure_all(
        evaluation.Evaluator(config.eval, config.data, found, model),
        quantizers.Quantizers(('nf4',), model).views(), model.params,
        loading.load(root / 'model', ml_dtypes.bfloat16).params)
    for precision in ('fp', 'nf4'):
      texts = measured['unlearned', precision].texts
      self.assertEqual(
          perplexity.pool(texts.values()).perplexity,
          record['perplexity']['unlearned'][precision])

  def test_an_edit_for_several_quantizers(self):
    promised = ('nf4', 'fp4', 'nf4_b128_dq', 'q4_0')
    root, record = _run('--quant_schemes=' + ','.join(
        (*promised, 'q4_k', 'gptq_g128', 'awq_g128')))
    self._check_edit(root)
    moved = record['survival']['nf4']['moved']
    self.assertGreater(moved, 0)
    for scheme, found in record['quantizers'].items():
      shares = record['survival'][scheme]
      self.assertEqual(found['guaranteed'], scheme in promised)
      if found['guaranteed']:  # All edits survive, and nothing else changes.
        self.assertEqual(shares['moved_unchanged'], 0)
        self.assertEqual(shares['changed_codes'], moved)
      elif scheme != 'q4_k':  # Calibration makes other codes elsewhere.
        self.assertGreater(shares['changed_codes'], moved)
        self.assertGreater(found['calibration']['tokens'], 1000)
      for key in ('ptq_gap', 'ptq_gap_base', 'ptq_gap_adjusted'):
        self.assertIn(scheme, record[key])
      self.assertIn(scheme, record['accuracy']['retain']['unlearned'])
      self.assertGreater(record['perplexity']['unlearned'][scheme], 1)
    # Rows of 64 and 128 are no multiple of 256.
    self.assertEqual(
        set(record['quantizers']['q4_k']['instead'].values()), {'q5_0'})
    report = (root / 'report.md').read_text()
    for text in ('q4_k cannot cut the rows', '| gptq_g128 | GPTQ',
                 'awq_g128 was calibrated on',
                 '| nf4_b128_dq | NF4 (bitsandbytes) | 128 | yes |'):
      self.assertIn(text, report)

  def test_labels_drawn_from_the_model_give_another_fisher(self):
    # The model is sure of its facts: all 120 sequences, so that some differ.
    other, base = [_checkpoint(_run(*a)[0], 'fisher') for a in (
        ('--fisher_sequences=120', '--fisher_labels=model'),
        ('--fisher_sequences=120',))]
    gate = [np.asarray(f['layers']['mlp']['gate']) for f in (other, base)]
    self.assertFalse((gate[0] == gate[1]).all())
    self.assertGreater(gate[0].max(), 0)

  def test_a_set_without_held_out_phrasings_is_inconclusive(self):
    lines = tiny_job.questions()
    path = _folder() / 'trained_only.jsonl'
    tiny_job.write_jsonl(
        path, [q for q in lines['forget'] if q['use'] == 'train'])
    flags = [f for f in tiny_job.make(_folder() / 'job')
             if not f.startswith(('--data_forget', '--data_heldout',
                                  '--data_text'))]
    root = _folder() / 'bare'
    record = runs.run(root, *flags, *_BRIEF, f'--data_forget={path}')
    self.assertEqual(record['data']['missing_splits'], [
        'forget_paraphrase', 'forget_far', 'retain_heldout'])
    for letter in 'FQS':
      entry = record['properties'][letter]
      self.assertEqual(entry['passed'], 'inconclusive')
      self.assertRegex(' '.join(entry.get('reasons') or [entry['reason']]),
                       'near or far|--eval_hidden_questions=0')
    self.assertEqual(record['perplexity'], {'base': {}, 'unlearned': {}})
    self.assertIn('not measured', (root / 'report.md').read_text())

  def _untrue(self, role):
    """Flag of a copy of a role's file with answers that the base denies."""
    lines = tiny_job.questions()[role]
    first = [q for q in lines if q['relation'] == lines[0]['relation']]
    facts = {q['fact']: q['answer'] for q in first}
    (one, his), (other, hers) = list(facts.items())[:2]
    swapped = {one: hers, other: his}  # So each pair's answers are swapped.
    lines = [q for q in first if q['fact'] in swapped]
    for line in lines:
      line['answer'] = swapped[line['fact']]
      line['choices'] = [his, hers]
    path = _folder() / f'untrue_{role}.jsonl'
    tiny_job.write_jsonl(path, lines)
    return f'--data_{role}={path}'

  def _replaced(self, role):
    flags = [f for f in tiny_job.make(_folder() / 'job')
             if not f.startswith(f'--data_{role}=')]
    return [*flags, *_BRIEF, *_WHOLE, self._untrue(role)]

  def test_a_forget_set_that_the_base_does_not_know_is_refused(self):
    with self.assertRaisesRegex(
        ValueError, 'wanted clean above corrupted.*check the forget set'):
      runs.run(_folder() / 'unknown_forget', *self._replaced('forget'))

  def test_a_retain_set_that_the_base_does_not_know_costs_only_erasure(self):
    record = runs.run(
        _folder() / 'unknown_retain', *self._replaced('retain'))
    self.assertEqual(record['as_nc'], {})
    self.assertIn('value', record['cad'])  # The forget pairs are known.
    self.assertEqual(record['properties']['S']['passed'], 'inconclusive')
    self.assertRegex(record['unmeasured']['as_nc'], 'wanted clean above')
    self.assertLess(record['accuracy']['retain']['base']['fp']['value'], 0.2)


if __name__ == '__main__':
  absltest.main()
