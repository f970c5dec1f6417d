"""Hugging Face directories without torch: round trips."""

import contextlib
import dataclasses
import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from mansu_jax.config import run as run_config
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import sharding
from tests.models import tiny
from tests.models import tiny_tokenizers

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

  def test_answers_end_at_the_end_tokens_of_all_files(self):
    path = tiny.temp_dir(self) / 'model'
    cfg = tiny.config(eos_token_id=(2, 5))
    hf_io.write(path, cfg, tiny.params(cfg), None,
                generation={'eos_token_id': [5, 9]})
    model = loading.load(path)
    self.assertEqual(model.end_tokens, (2, 5, 9))
    tokenizer = mock.Mock(eos_token_id=7)
    self.assertEqual(dataclasses.replace(
        model, tokenizer=tokenizer).end_tokens, (2, 5, 7, 9))

  def test_an_export_keeps_the_config_and_the_tokenizer_of_its_directory(self):
    root, cfg = tiny.temp_dir(self), tiny.config(vocab_size=320)
    source = root / 'source'
    hf_io.write(source, cfg, tiny.params(cfg), tiny_tokenizers.byte_level(
        ('<s>',), bos='<s>'))
    config = json.loads((source / 'config.json').read_text())
    del config['torch_dtype'], config['architectures']
    config |= {'attention_dropout': 0.25, 'id2label': {'0': 'A'},
               'dtype': 'float16', 'torch_dtype': 'float16',
               'transformers_version': '4.1.2'}
    unknown = {'quantization_config': {}, 'mine': [1]}
    (source / 'config.json').write_text(json.dumps(config | unknown))
    settings = source / 'tokenizer_config.json'
    settings.write_text(json.dumps(
        json.loads(settings.read_text()) | {'add_bos_token': True}))
    (source / 'tokenizer.model').write_bytes(b'\0\1\2')
    template = 'additional_chat_templates/tool_use.jinja'
    (source / template).parent.mkdir()
    (source / template).write_text('{{ tools }}')
    model = loading.load(source, ignore_fields=unknown)
    hf_io.write(root / 'export', model.config, model.params, model.tokenizer,
                export_dtype='bfloat16', carried=model.carried)
    self.assertEqual(
        json.loads((root / 'export' / 'config.json').read_text()),
        {'architectures': ['LlamaForCausalLM']} | config | {
            'dtype': 'bfloat16', 'torch_dtype': 'bfloat16'})
    names = {file.name for file in source.iterdir()}
    self.assertContainsSubset({'tokenizer.json', 'tokenizer.model'}, names)
    self.assertEqual({f.name for f in (root / 'export').iterdir()}, names)
    names = names - {'config.json', 'model.safetensors',
                     'additional_chat_templates'}
    for name in (*names, template):
      self.assertEqual((root / 'export' / name).read_bytes(),
                       (source / name).read_bytes(), name)
    self.assertEqual(loading.load(root / 'export').config, model.config)
    other = dataclasses.replace(model.config, rope_theta=7.0)
    with self.assertRaisesRegex(ValueError, 'of another model config'):
      hf_io.write(root / 'other', other, model.params, None,
                  carried=model.carried)

  def test_a_tokenizer_without_tokenizer_json_is_that_of_the_model(self):
    source, cfg = tiny.temp_dir(self) / 'source', tiny.config(vocab_size=320)
    hf_io.write(source, cfg, tiny.params(cfg), None)
    letters = [*map(chr, range(33, 127)), '<|endoftext|>']
    (source / 'vocab.json').write_text(json.dumps(
        {letter: i for i, letter in enumerate(letters)}))
    (source / 'merges.txt').write_text('#version: 0.2\n')
    (source / 'tokenizer_config.json').write_text(json.dumps(
        {'tokenizer_class': 'GPT2Tokenizer', 'model_max_length': 64}))
    model = loading.load(source)
    path = source.with_name('export')
    hf_io.write(path, model.config, model.params, model.tokenizer,
                carried=model.carried)
    again = loading.load(path)
    self.assertEqual(again.end_tokens, model.end_tokens)
    self.assertEqual(again.tokenizer.special_tokens_map,
                     model.tokenizer.special_tokens_map)
    self.assertTrue((path / 'tokenizer.json').is_file())
    self.assertEqual((path / 'merges.txt').read_bytes()[:9], b'#version:')

  def test_files_of_two_types(self):
    path, cfg = tiny.temp_dir(self) / 'model', tiny.config()
    hf_io.write(path, cfg, tiny.params(cfg), None, export_dtype='bfloat16')
    file = path / 'model.safetensors'
    tensors = safetensors_numpy.load_file(file)
    note = lambda dtype: loading.load(path, dtype).source['weights_note']
    self.assertEqual(note('bfloat16'), 'bfloat16 from safetensors')
    norm = 'model.norm.weight'
    safetensors_numpy.save_file(
        tensors | {norm: tensors[norm].astype(np.float32)}, file)
    self.assertEqual(loading.load(path).stored, 'bfloat16')
    self.assertEqual(
        note('bfloat16'), 'bfloat16 from safetensors, rounded to bfloat16')
    self.assertEqual(note('float32'), 'float32 from safetensors')

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

  def test_a_disk_that_is_full_when_the_tokenizer_is_written(self):
    path, cfg = tiny.temp_dir(self) / 'model', tiny.config()

    class Full:
      def save_pretrained(self, path):
        (pathlib.Path(path) / 'tokenizer.json').write_text('{')
        raise Exception('No space left on device (os error 28)')

    with self.assertRaisesRegex(OSError, 'tokenizer cannot be written .No spa'):
      hf_io.write(path, cfg, tiny.params(cfg), Full())
    self.assertEmpty(list(path.parent.iterdir()))

  def test_old_checkpoints_store_what_the_config_gives(self):
    path, cfg = tiny.temp_dir(self) / 'model', tiny.config()
    hf_io.write(path, cfg, tiny.params(cfg), None)
    file = path / 'model.safetensors'
    safetensors_numpy.save_file(safetensors_numpy.load_file(file) | {
        'model.layers.0.self_attn.rotary_emb.inv_freq': np.ones(3, 'f')}, file)
    loading.load(path)  # Knowingly ignored.


if __name__ == '__main__':
  absltest.main()
