"""Written GGUF files are read back and equal those of llama.cpp's converter.

`tiny.write_gguf`, written by hand, stands for the converter.
"""

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import jax
import numpy as np
import pytest
import tokenizers
import transformers

from mansu_jax.models import config as config_lib
from mansu_jax.models.io import gguf_config
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_writer
from mansu_jax.models.io import loading
from tests import tiny_job
from tests.models import tiny

_TEXT = 'thin 12  3\n<a>thing</s>'


def _metadata(path):
  return gguf_io.open_file(path).metadata


class WeightsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.path = tiny.temp_dir(self) / 'x.gguf'

  @parameterized.named_parameters(*tiny.GGUF_CASES)
  def test_round_trip(self, changes):
    cfg = tiny.config(**changes)
    weights = tiny.params(cfg)
    self.assertIsNone(gguf_writer.write(str(self.path), cfg, weights, None))
    self.assertIsNone(loading.load(str(self.path)).tokenizer)
    file = gguf_io.open_file(self.path)
    got = gguf_io.read_params(file, cfg, np.float32)
    jax.tree.map(np.testing.assert_array_equal, got, weights)
    wanted = {'bos_token_id': None, 'eos_token_id': None}  # No vocabulary.
    self.assertEqual(gguf_config.read_config(file), tiny.config(
        **changes | wanted))

  def test_tensors_are_those_of_the_converter(self):
    cfg = tiny.config(tie_embeddings=False)
    weights = tiny.params(cfg)
    gguf_writer.write(self.path, cfg, weights, None)
    want = tiny.gguf_tensors(cfg, weights)
    got = {t.name: t for t in gguf.GGUFReader(self.path).tensors}
    self.assertEqual(set(got), set(want))
    for name, rows in want.items():
      self.assertEqual(got[name].tensor_type, gguf.GGMLQuantizationType.F32)
      np.testing.assert_array_equal(
          got[name].data.reshape(rows.shape), rows, err_msg=name)

  @parameterized.parameters(8.0, 32.0, 3.0)
  @pytest.mark.medium
  def test_llama3_scaling_is_held_as_divisors(self, factor):
    cfg = tiny.config(
        d_head=10, rope_theta=500_000.0, bos_token_id=None, eos_token_id=None,
        rope_scaling=config_lib.RopeScaling(
            kind='llama3', factor=factor, low_freq_factor=1.0,
            high_freq_factor=4.0, original_max_position=8192))
    weights = tiny.params(cfg)
    gguf_writer.write(self.path, cfg, weights, None)
    file = gguf_io.open_file(self.path)
    self.assertEqual(gguf_config.read_config(file), cfg)
    jax.tree.map(np.testing.assert_array_equal, weights,
                 gguf_io.read_params(file, cfg, np.float32))
    # As convert_hf_to_gguf.py has it.
    want = []
    for i in range(5):
      wavelength = 2 * np.pi * 500_000.0 ** (2 * i / 10)
      smooth = (8192 / wavelength - 1) / 3
      want.append(1.0 if wavelength < 2048 else factor if wavelength > 8192
                  else 1 / ((1 - smooth) / factor + smooth))
    got = next(file.stored(t).view(np.float32) for t in file.tensors
               if t.name == 'rope_freqs.weight')
    np.testing.assert_allclose(got, want, rtol=1e-6)
    self.assertNotIn('llama.rope.scaling.type', file.metadata)

  def test_weights_that_are_not_finite(self):
    cfg = tiny.config()
    weights = tiny.params(cfg)
    weights['final_norm'] = weights['final_norm'].at[1].set(np.nan)
    with self.assertRaisesRegex(ValueError, "'final_norm' has 1 non-finite"):
      gguf_writer.write(self.path, cfg, weights, None)

  def test_another_family(self):
    cfg = tiny.config(family='qwen2', qkv_bias=True)
    with self.assertRaisesRegex(ValueError, "'qwen2'; wanted `llama`"):
      gguf_writer.write(self.path, cfg, tiny.params(cfg), None)

  def test_a_failure_leaves_nothing(self):
    cfg = tiny.config()
    with self.assertRaises(AttributeError):  # In the midst of writing.
      gguf_writer.write(self.path, cfg, tiny.params(cfg), _Broken())
    self.assertEmpty(list(self.path.parent.iterdir()))


class _Broken:
  """A tokenizer whose backend cannot be read."""

  backend_tokenizer = object()


class TokenizerTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.temp_dir(self)
    self.cfg = tiny.config()

  def _tokenizer(self, **kwargs):
    path = self.folder / 'source.gguf'
    tiny.write_gguf(path, self.cfg, tiny.params(self.cfg), **kwargs)
    return loading.load(str(path)).tokenizer

  def _write(self, tokenizer, cfg=None):
    cfg = cfg or self.cfg
    path = self.folder / 'x.gguf'
    words = gguf_writer.write(path, cfg, tiny.params(cfg), tokenizer)
    return path, words

  @parameterized.product(
      pre=('smollm', 'gpt-2', 'llama-bpe'), add_bos=(False, True))
  def test_round_trip(self, pre, add_bos):
    tokenizer = self._tokenizer(pre=pre, add_bos=add_bos)
    tokenizer.chat_template = '{{ messages }}'
    path, words = self._write(tokenizer)
    self.assertEqual(words, pre)
    model = loading.load(str(path))
    self.assertEqual(model.config, self.cfg)
    again = model.tokenizer
    self.assertEqual(again(_TEXT)['input_ids'], tokenizer(_TEXT)['input_ids'])
    self.assertEqual(again.get_vocab(), tokenizer.get_vocab())
    self.assertEqual(again.chat_template, tokenizer.chat_template)
    for name in ('bos_token', 'eos_token', 'pad_token', 'unk_token'):
      self.assertEqual(getattr(again, name), getattr(tokenizer, name), name)

  def test_a_trained_tokenizer(self):
    cfg, weights, tokenizer = tiny_job.base(train=False)
    path = self.folder / 'x.gguf'
    self.assertEqual(
        gguf_writer.write(path, cfg, weights, tokenizer), 'gpt-2')
    again = loading.load(str(path)).tokenizer
    text = ' '.join(q['prompt'] for q in tiny_job.questions()['forget'])
    self.assertEqual(again(text)['input_ids'], tokenizer(text)['input_ids'])

  def test_ids_without_a_token_are_filled_up(self):
    cfg = tiny.config(vocab_size=len(tiny.VOCAB) + 3)
    path, words = self._write(self._tokenizer(), cfg)
    self.assertEqual(words, 'smollm')
    found = _metadata(path)
    self.assertLen(found['tokenizer.ggml.tokens'], cfg.vocab_size)
    self.assertSequenceEqual(
        found['tokenizer.ggml.token_type'][-3:], [5, 5, 5])

  def test_an_unknown_tokenizer_is_left_out(self):
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({'a': 0, 'b': 1}, unk_token='a'))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    unlike = self._tokenizer()
    unlike.backend_tokenizer.normalizer = tokenizers.normalizers.NFC()
    for tokenizer in (
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend),
        unlike):
      path, words = self._write(tokenizer)
      self.assertIsNone(words)
      self.assertEqual(_metadata(path)['tokenizer.ggml.model'], 'none')
      self.assertEqual(_metadata(path)['llama.vocab_size'],
                       self.cfg.vocab_size)


if __name__ == '__main__':
  absltest.main()
