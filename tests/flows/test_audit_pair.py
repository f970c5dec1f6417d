"""Audits of weights without data, and pairs of models that do not match."""

import json
import pathlib
import shutil
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy
import tokenizers

from mansu_jax import main
from mansu_jax.models import families
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.report import write as report
from mansu_jax.runtime import preemption
from mansu_jax.stages.judge import judging
from mansu_jax.report.sections import summary
from tests import bad_input
from tests import runs
from tests import tiny_job
from tests.models import tiny

_UP = 'model.layers.1.mlp.up_proj.weight'
_EMBED = 'model.embed_tokens.weight'


class _Folder(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(
        self.enterContext(tempfile.TemporaryDirectory()))


class WeightsTest(_Folder):
  """Weights alone: no data, and nothing trained."""

  def setUp(self):
    super().setUp()
    self.base, self.model = self.folder / 'base', self.folder / 'model'
    self.parts = tiny_job.base(train=False)
    hf_io.write(self.base, *self.parts)
    shutil.copytree(self.base, self.model)

  def _configure(self, **fields):
    file = self.model / 'config.json'
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))

  def _change(self, change, folder=None):
    file = (folder or self.model) / 'model.safetensors'
    found = safetensors_numpy.load_file(file)
    change(found)
    safetensors_numpy.save_file(found, file)

  def _double_a_row(self):
    def double(found):
      found[_UP] = found[_UP].copy()
      found[_UP][3] *= 2
    self._change(double)

  def _audit(self, *flags):
    return report.as_json(runs.audit(
        self.folder / 'audit', f'--base={self.base}', f'--model={self.model}',
        *flags))

  def test_says_what_moved_and_how_it_survives(self):
    self._double_a_row()
    record = self._audit('--quant_schemes=nf4,int4_g128')
    before, after = (runs.tensors(f) for f in (self.base, self.model))
    moved = sum(int((after[n] != before[n]).sum()) for n in before)
    total = sum(x.size for x in before.values())
    self.assertEqual(moved, 64)
    self.assertAlmostEqual(record['movement']['total']['moved'], moved / total)
    leaves = record['movement']['leaves']
    self.assertEqual([n for n, l in leaves.items() if l['moved']],
                     ['layers/mlp/up'])
    self.assertEqual(
        [bool(l['moved']) for l in leaves['layers/mlp/up']['by_layer']],
        [False, True, False])
    norm = np.linalg.norm
    self.assertAlmostEqual(
        leaves['layers/mlp/up']['by_layer'][1]['relative'],
        norm(after[_UP] - before[_UP]) / norm(before[_UP]), places=6)
    for scheme in ('nf4', 'int4_g128'):
      self.assertAlmostEqual(
          record['survival'][scheme]['moved'], moved / total, places=9)
      self.assertEqual(
          sum(record['survival_details'][scheme]['total']['histogram']), moved)

  def test_unmeasured_entries_are_empty_and_inconclusive(self):
    self._double_a_row()
    record = self._audit()
    for name in ('accuracy', 'ptq_gap', 'ptq_gap_base', 'ptq_gap_adjusted',
                 'perplexity_by_text', 'cad', 'as_nc', 'circuit', 'history',
                 'accuracy_by_relation', 'accuracy_by_form', 'retain_kl'):
      self.assertEqual(record[name], {}, name)
    for name, found in record['properties'].items():
      self.assertEqual(found['passed'], 'inconclusive', name)
      self.assertNotEmpty(found.get('reasons') or found['reason'])
    self.assertEqual(record['verdict']['passed'], 'inconclusive')
    self.assertEqual((self.folder / 'audit/answers.jsonl').read_text(), '')
    text = (self.folder / 'audit/report.md').read_text()
    self.assertIn('What was not measured', text)
    self.assertIn('plots/moved_share.svg', text)

  def test_no_tokenizer_is_needed(self):
    self._double_a_row()
    for file in (*self.base.glob('token*'), *self.model.glob('token*')):
      file.unlink()
    record = self._audit()
    self.assertEqual(record['tokenization'], {})
    self.assertEqual(record['pair']['tokenizers'], 'there are none')

  @parameterized.parameters('bfloat16', 'float16')
  @pytest.mark.slow
  def test_a_cast_of_the_base_is_not_a_move(self, dtype):
    config, params, tokenizer = self.parts
    params = params | {'embed': params['embed'].at[0].mul(1.5)}
    hf_io.write(self.model, config, params, tokenizer, export_dtype=dtype)
    record = self._audit()
    pair = record['pair']
    self.assertEqual(
        (pair['stored_as'], pair['base_stored_as'], pair['compared_as']),
        (dtype, 'float32', dtype))
    self.assertIn(f'rounded to {dtype}', record['model']['weights_note'])
    leaves = record['movement']['leaves']
    self.assertEqual([n for n, l in leaves.items() if l['moved']], ['embed'])
    self.assertEqual(round(leaves['embed']['moved'] * params['embed'].size),
                     config.d_model)

  @pytest.mark.slow
  def test_export_dtype_applies_to_both_models(self):
    self._double_a_row()
    record = self._audit('--export_dtype=bfloat16')
    self.assertEqual(record['pair']['stored_as'], 'float32')
    self.assertEqual(record['pair']['compared_as'], 'bfloat16')
    self.assertIn('rounded to bfloat16', record['pair']['weights_note'])

  @pytest.mark.slow
  def test_a_gguf_and_a_directory_make_a_pair(self):
    config = tiny.config()
    self.base = self.folder / 'base.gguf'
    tiny.write_gguf(self.base, config, tiny.params(config))
    found = loading.load(self.base)
    params = found.params | {'final_norm': found.params['final_norm'] * 1.5}
    hf_io.write(self.model, found.config, params, found.tokenizer)
    record = self._audit()
    self.assertEqual(record['model']['kind'], 'gguf')
    self.assertEqual(record['pair']['kind'], 'directory')
    self.assertEqual(record['pair']['tokenizers'], 'the same')
    leaves = record['movement']['leaves']
    self.assertEqual([n for n, l in leaves.items() if l['moved']],
                     ['final_norm'])

  def test_constants_are_compared_as_float32(self):
    self._double_a_row()
    self._configure(  # As other tools write out GGUF's float32.
        rms_norm_eps=9.9999997e-06, rope_theta=10000.0003, rope_parameters={
            'rope_type': 'default', 'rope_theta': 10000.0})
    self.assertEqual(self._audit()['pair']['other_differences'], {})
    self._configure(rms_norm_eps=9.99e-06, rope_theta=1e300)
    with self.assertRaisesRegex(ValueError, 'rope_theta as .10000.0, 1e.300'):
      self._audit()
    self._configure(rope_theta=10000.0)
    with self.assertRaisesRegex(ValueError, 'norm_eps = 1e-05, .* 9.99e-06'):
      self._audit()

  def test_fields_that_compute_nothing(self):
    self._double_a_row()
    self._configure(**dict.fromkeys(families.FAMILIES['llama'].groups()[-1], 'anything'), **{
        'pruned_heads': {}, 'is_encoder_decoder': False})
    self.assertEqual(self._audit()['pair']['other_differences'], {})
    self._configure(pruned_heads={'1': [0]})
    with self.assertRaisesRegex(ValueError, 'wanted `pruned_heads: {}`'):
      self._audit()

  def test_tied_weights_that_are_stored_twice(self):
    self._double_a_row()
    twice = lambda found: found | {'lm_head.weight': found[_EMBED]}
    self._change(lambda found: found.update(twice(found)))
    record = self._audit()
    self.assertEqual([n for n, l in record['movement']['leaves'].items()
                      if l['moved']], ['layers/mlp/up'])

  def test_tied_weights_that_differ_are_refused(self):
    def change(found):
      found['lm_head.weight'] = found[_EMBED].copy()
      found['lm_head.weight'][-1, 0] += 1
    self._change(change)
    with self.assertRaisesRegex(
        ValueError, 'lm_head.weight differs from model.embed_tokens.weight'
        '.* Set tie_word_embeddings'):
      self._audit()

  def test_moves_within_the_bases_rounding_are_not_counted(self):
    config, params, tokenizer = self.parts
    hf_io.write(self.base, config, params, tokenizer, export_dtype='bfloat16')
    self._double_a_row()
    record = self._audit()
    self.assertGreater(record['movement']['total']['moved'], 0.9)
    self.assertAlmostEqual(
        record['pair']['moved_beyond_rounding'],
        64 / record['movement']['total']['size'])
    told = 'moved by more than the base\'s rounding to bfloat16'
    self.assertIn(told, (self.folder / 'audit/report.md').read_text())
    self.assertIn(told, '\n'.join(summary.lines(record)))

  def test_a_changed_model_file_is_refused(self):
    self._double_a_row()
    self._audit()
    self._double_a_row()
    with self.assertRaisesRegex(ValueError, "another version of 'model'"):
      self._audit()


class RefusalTest(bad_input.Refusals):

  def setUp(self):
    super().setUp()
    self.base, self.model = self.folder / 'base', self.folder / 'model'
    for folder in (self.base, self.model):
      shutil.copytree(self.job / 'model', folder)
    self.flags = ['--mode=audit', *runs.audit_flags(
        self.flags, self.base, self.model)]

  def _json(self, name, change):
    file = self.model / name
    fields = json.loads(file.read_text())
    change(fields)
    file.write_text(json.dumps(fields))

  def _weights(self, change):
    file = self.model / 'model.safetensors'
    safetensors_numpy.save_file({
        name: change(name, x).astype(np.float32)
        for name, x in safetensors_numpy.load_file(file).items()}, file)

  def test_a_missing_base_flag_is_refused(self):
    self.without('--base')
    self.refused(message=('--mode=audit', '--base is not set', 'Give --base='))

  @parameterized.parameters('', 'model/../')
  def test_one_model_twice(self, detour):
    self.refused(f'--model={self.folder}/{detour}base', message=(
        'are one model', 'wanted a model and its state before unlearning'))

  @parameterized.parameters(
      ('--method=graddiff',), ('--unlearn_steps=7',),
      ('--edit_floor=lift',), ('--fisher_chunk=8',),
      ('--data_text=t.txt',), ('--nounlearn_quantizer_in_loop',))
  def test_flags_that_only_unlearning_reads(self, flag):
    self.refused(flag, message=(
        f'{flag} has no effect in --mode=audit: it applies to --mode=unlearn',
        'Leave it out'))

  def test_a_missing_base_is_refused(self):
    self.refused('--base=no/such', message=("No model at 'no/such'", 'Check'))

  @parameterized.parameters(
      (dict(rope_theta=5e5), 'rope_theta = 10000.0', '500000.0'),
      (dict(num_hidden_layers=2), 'num_layers = 3', '2'),
      (dict(vocab_size=2000), r'vocab_size = \d+', '2000'),
      (dict(tie_word_embeddings=False), 'tie_embeddings = True', 'False'))
  def test_configs_that_differ(self, changes, *shown):
    self._json('config.json', lambda fields: fields.update(changes))
    self.refused(message=(f'--base={self.base} has {shown[0]}', shown[1],
                          'wanted the same architecture'))

  def test_fields_that_compute_nothing_may_differ(self):
    self._json('config.json', lambda fields: fields.update(
        max_position_embeddings=96, pad_token_id=3))
    self.refused(for_weights=True, message=('All .* weights .* equal',))

  def test_vocabularies_that_differ(self):
    def swap(fields):
      vocabulary = fields['model']['vocab']
      one, other = list(vocabulary)[40:42]
      vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    self._json('tokenizer.json', swap)
    self.refused(message=(
        r"The tokenizers differ: token '.' is \d+ in that of --base",
        'wanted the same', 'Copy the tokenizer'))

  def test_merges_that_differ(self):
    def swap(fields):
      merges = fields['model']['merges']
      merges[2], merges[3] = merges[3], merges[2]
    self._json('tokenizer.json', swap)
    self.refused(message=('The tokenizers differ: merge', 'is 2', '3'))

  def test_tokenizers_that_cut_the_data_differently(self):
    lower = tokenizers.normalizers.Lowercase()
    self._json('tokenizer.json', lambda fields: fields.update(
        normalizer=json.loads(lower.__getstate__())))
    self.refused(message=('encode .* differently', 'wanted the same tokens'))

  def test_tokenizers_that_cut_the_turns_differently(self):
    for folder in (self.base, self.model):
      file = folder / 'tokenizer_config.json'
      file.write_text(json.dumps(json.loads(file.read_text()) | {
          'chat_template': "QQ {{ messages[0]['content'] }}"}))
    replace = tokenizers.normalizers.Replace('QQ', 'Q')
    self._json('tokenizer.json', lambda fields: fields.update(
        normalizer=json.loads(replace.__getstate__())))
    self.refused('--data_chat', message=("encode 'QQ .* differently",))
    self.refused(for_weights=True, message=('All .* weights .* equal',))

  def test_neither_has_a_tokenizer(self):
    for folder in (self.base, self.model):
      for file in folder.glob('token*'):
        file.unlink()
    self.refused(message=(
        'Neither --base', 'has a tokenizer', 'run without data'))

  def test_weights_that_are_all_equal(self):
    self.refused(for_weights=True, message=(
        r'All \d+ weights of --model=.* equal those of --base',
        'nothing was unlearned', 'Give the unlearned one'))

  def test_another_model_of_the_same_shape(self):
    rng = np.random.default_rng(0)
    self._weights(lambda name, x: rng.permutation(x.ravel()).reshape(x.shape))
    self.refused(for_weights=True, message=(
        "is not derived from --base=.*'embed' has a cosine of -?0.0",
        'relative difference of 1.4', 'Give the base'))

  def test_most_matrices_of_another_model(self):
    self._weights(lambda name, x: x if 'embed' in name or x.ndim < 2 else -x)
    self.refused(for_weights=True, message=(
        "'layers/attn/q' has a cosine of -1.000", 'relative difference of 2.00',
        '7 of 8 matrices'))

  def test_a_weight_that_is_no_number(self):
    self._weights(lambda name, x: x * (np.nan if 'norm' in name else 1))
    self.refused(for_weights=True, message=('are not finite',))

  def test_too_long_questions_are_refused(self):
    lines = tiny_job.questions()['forget']
    lines[0] |= {'prompt': 'Alvaria ' * 200}
    self.refused(self.data('forget', lines), message=(
        'forget.jsonl:1: has 20. tokens', 'at most 128, the positions'))

  def test_a_contrast_without_retain_pairs(self):
    self.without('--data_retain')
    self.refused('--circuit_contrast=1', message=(
        'no train questions of the retain set',))

  def test_a_pairs_file_with_a_bad_line(self):
    path = self.folder / 'pairs.jsonl'
    path.write_text('{"clean": "a"}')
    self.without('--attribution_pairs')
    self.refused(f'--attribution_pairs_file={path}', message=(
        'pairs.jsonl:1: ', 'corrupt'))


class MainTest(_Folder):

  def _run(self, root, *more):
    """Status and output of an audit of weights."""
    base, model = self.folder / 'base', self.folder / 'model'
    if not base.exists():
      config, params, tokenizer = tiny_job.base(train=False)
      hf_io.write(base, config, params, tokenizer)
      embed = jnp.asarray(params['embed']).at[3].mul(2)
      hf_io.write(model, config, params | {'embed': embed}, tokenizer)
    return bad_input.status([
        '--mode=audit', f'--base={base}', f'--model={model}',
        f'--workdir={self.folder / root}', *more])

  def test_exit_status_follows_the_verdict_on_request(self):
    self.assertEqual(self._run('one')[0], 0)
    self.assertIn('in none of 3 layers',
                  (self.folder / 'one' / 'report.md').read_text())
    self.assertEqual(
        self._run('two', '--fail_on_verdict')[0], main.VERDICT_FAILED)

  def test_a_stopped_audit_says_that_it_resumes(self):
    with mock.patch.object(
        judging, 'run', side_effect=preemption.Stopped('SIGTERM')):
      status, said = self._run('one')[:2]
    self.assertEqual(status, 75)
    self.assertIn('the same command resumes the run', said)
    self.assertEqual(self._run('one')[0], 0)


if __name__ == '__main__':
  absltest.main()
