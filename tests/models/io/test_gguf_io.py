"""The GGUF loader reads valid files and refuses damaged or unknown ones."""

import time

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import loading
from tests.models import tiny


def _without(name):
  return lambda tensors: {k: v for k, v in tensors.items() if k != name}


def _with(name, rows):
  return lambda tensors: tensors | {name: rows}


class ReadTest(parameterized.TestCase):

  @parameterized.named_parameters(*tiny.GGUF_CASES)
  def test_round_trip(self, changes):
    path = tiny.temp_dir(self) / 'x.gguf'
    cfg = tiny.config(**changes)
    weights = tiny.params(cfg)
    tiny.write_gguf(path, cfg, weights)
    model = loading.load(str(path))
    self.assertEqual(model.config, cfg)
    jax.tree.map(np.testing.assert_array_equal, model.params, weights)
    self.assertEqual(model.source['kind'], 'gguf')
    self.assertEqual(
        model.source['weights_note'], 'float32 dequantised from F32 GGUF')

  def test_param_dtype(self):
    path = tiny.temp_dir(self) / 'x.gguf'
    cfg = tiny.config()
    weights = tiny.params(cfg)
    tiny.write_gguf(path, cfg, weights)
    got = loading.load(path, dtype=jnp.bfloat16).params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(
        a, b.astype(jnp.bfloat16)), got, weights)

  def test_quantized_tensors_are_dequantised(self):
    path = tiny.temp_dir(self) / 'x.gguf'
    cfg = tiny.config(d_model=64, d_ff=64, d_head=16)
    rows = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    writer_rows = gguf.quantize(rows, gguf.GGMLQuantizationType.Q4_1)
    name = 'blk.1.ffn_up.weight'
    tiny.write_gguf(path, cfg, tiny.params(cfg), raw={
        name: (writer_rows, gguf.GGMLQuantizationType.Q4_1)})
    got = loading.load(path).params['layers']['mlp']['up'][1]
    want = gguf.dequantize(writer_rows, gguf.GGMLQuantizationType.Q4_1)
    np.testing.assert_array_equal(got, want.T)
    self.assertLess(np.abs(want - rows).max(), 0.3)

  def test_rotary_rows_by_hand(self):
    # Two heads of width 4: file rows pair (0, 2) and (1, 3) of each head.
    rows = np.array([[0], [2], [1], [3], [10], [12], [11], [13]])
    got = gguf_io._unpair_rotary(rows, heads=2)
    np.testing.assert_array_equal(
        got[:, 0], [0, 1, 2, 3, 10, 11, 12, 13])


class TokenizerTest(parameterized.TestCase):

  def _load(self, **kwargs):
    path = tiny.temp_dir(self) / 'x.gguf'
    cfg = tiny.config()
    tiny.write_gguf(path, cfg, tiny.params(cfg), **kwargs)
    return loading.load(path).tokenizer

  @parameterized.parameters(
      ('smollm', ['th', 'in', 'Ġ', '1', '2', 'ĠĠ', '3']),
      ('gpt-2', ['th', 'in', 'Ġ', '1', '2', 'Ġ', 'Ġ', '3']),
      ('llama-bpe', ['th', 'in', 'Ġ', '1', '2', 'Ġ', 'Ġ', '3']))
  def test_pre_names_the_word_rule(self, pre, want):
    tokenizer = self._load(pre=pre)
    ids = tokenizer('thin 12  3')['input_ids']
    self.assertEqual(tokenizer.convert_ids_to_tokens(ids), want)
    self.assertEqual(tokenizer.decode(ids), 'thin 12  3')

  def test_bos_follows_add_bos_token(self):
    plain, with_bos = self._load(), self._load(add_bos=True)
    self.assertEqual(plain('a')['input_ids'], [tiny.VOCAB.index('a')])
    self.assertEqual(with_bos('a')['input_ids'], [1, tiny.VOCAB.index('a')])
    self.assertEqual(with_bos.bos_token_id, 1)
    path = tiny.temp_dir(self)
    with_bos.save_pretrained(path)
    self.assertEqual(
        type(with_bos).from_pretrained(path)('a')['input_ids'],
        with_bos('a')['input_ids'])

  @parameterized.parameters('unknown', 'padding', 'seperator')
  def test_special_tokens_that_the_vocabulary_lacks_are_none(self, name):
    """Real files name 4294967295, or one beyond the end."""
    for value in (2**32 - 1, len(tiny.VOCAB)):
      tokenizer = self._load(
          extra={f'tokenizer.ggml.{name}_token_id': value})
      self.assertIsNone(tokenizer.pad_token)
      self.assertIsNone(tokenizer.unk_token)
      self.assertEqual(tokenizer.bos_token_id, 1)

  def test_control_tokens_are_not_split(self):
    self.assertEqual(self._load()('a</s>b')['input_ids'],
                     [tiny.VOCAB.index('a'), 2, tiny.VOCAB.index('b')])


class RefuseTest(parameterized.TestCase):

  def _refused(self, message, **kwargs):
    path = tiny.temp_dir(self) / 'x.gguf'
    cfg = tiny.config()
    tiny.write_gguf(path, cfg, tiny.params(cfg), **kwargs)
    with self.assertRaisesRegex(ValueError, message):
      loading.load(path)

  @parameterized.named_parameters(
      ('missing', _without('blk.1.ffn_up.weight'),
       'missing 1 .blk.1.ffn_up.weight.'),
      ('extra', _with('rope_extra.weight', np.ones(3, np.float32)),
       'extra 1 .rope_extra.weight.'),
      ('divisors', _with('rope_freqs.weight', np.float32([1, 2, 3])),
       'by 1, 2, 3; wanted the 3 divisors of Llama 3.1'),
      ('few_divisors', _with('rope_freqs.weight', np.ones(2, np.float32)),
       'by 1, 1; wanted the 3 divisors'),
      ('shape', _with('blk.0.ffn_up.weight', np.ones((40, 23), np.float32)),
       r'wrong shape: 1 .blk.0.ffn_up.weight \(40, 23\) .wanted \(40, 24\)'),
      ('no_embedding', _without('token_embd.weight'),
       'lacks the tensor token_embd.weight; wanted the embedding'))
  def test_tensors(self, change, message):
    self._refused(message, change_tensors=change)

  def test_architecture(self):
    self._refused('has `general.architecture: mamba`; wanted one of those that'
                  ' this version supports: gemma2, gemma3, gpt2, llama, phi3,'
                  ' qwen2, qwen3. Use another file',
                  architecture='mamba')

  @parameterized.parameters('llama.expert_count', 'llama.attention.strange')
  def test_unknown_key(self, key):
    name = key.removeprefix('llama.')
    self._refused(f'unknown llama keys ..{name}.*give --model_ignore_fields='
                  f'{name}', extra={key: 4})

  def test_vocabulary_of_another_size_than_the_embedding(self):
    self._refused('llama.vocab_size = 90; wanted 104, the rows of the embedding',
                  extra={'llama.vocab_size': 90})

  def test_partial_rotary(self):
    self._refused('rope.dimension_count = 2; wanted the head width 6',
                  extra={'llama.rope.dimension_count': 2})

  def test_tokenizer_kind(self):
    self._refused("ggml.pre = 'viking'; wanted", pre='viking')

  def test_every_truncation_is_one_clear_error(self):
    path = tiny.temp_dir(self) / 'x.gguf'
    cfg = tiny.config()
    tiny.write_gguf(path, cfg, tiny.params(cfg))
    whole = path.read_bytes()
    started = time.process_time()
    for size in (0, 3, 4, 10, 30, 100, 500, 2000, 5000, len(whole) // 2,
                 len(whole) - 1):
      path.write_bytes(whole[:size])
      with self.assertRaisesRegex(ValueError, 'GGUF'):
        loading.load(path)
    self.assertLess(time.process_time() - started, 20.0)


if __name__ == '__main__':
  absltest.main()
