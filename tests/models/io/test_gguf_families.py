"""GGUF files of each family give the params of the converted directory."""

import importlib
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import jax
import numpy as np

from mansu_jax.models import config as config_lib
from mansu_jax.models.io import gguf_config
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import loading
from tests.models import tiny
from tests.models.io import gguf_convert

try:
  import torch
  import transformers
except ImportError:
  torch = None


class ConvertedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = tiny.temp_dir(self)
    self.path = self.folder / 'x.gguf'

  def _convert(self, fields, **kwargs):
    cfg, weights = gguf_convert.make(self.folder / 'hf', fields)
    gguf_convert.convert(
        self.folder / 'hf', self.path, cfg, fields, **kwargs)
    return cfg, weights

  @parameterized.named_parameters(*gguf_convert.CASES)
  def test_params_and_config_are_those_of_the_directory(self, fields):
    self._convert(fields)
    want, got = loading.load(self.folder / 'hf'), loading.load(self.path)
    self.assertEmpty(list(config_lib.differences(got.config, want.config)))
    jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
    self.assertIsNone(got.tokenizer)

  @parameterized.named_parameters(*gguf_convert.CASES)
  @absltest.skipIf(torch is None, 'torch is not installed')
  def test_logits_are_those_of_transformers_gguf_reader(self, fields):
    cfg, _ = self._convert(fields)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        self.folder, gguf_file='x.gguf',
        config=transformers.AutoConfig.from_pretrained(
            self.folder / 'hf')).eval()
    got = loading.load(self.path)
    ids = np.random.default_rng(3).integers(0, cfg.vocab_size, (2, 40))
    with torch.no_grad():
      want = model(torch.from_numpy(ids)).logits.numpy()
    logits = np.asarray(tiny.logits(got.config, got.params, ids))
    np.testing.assert_allclose(logits, want, rtol=0, atol=1e-4)


_WIDE = {'model_type': 'llama', 'vocab_size': 8, 'hidden_size': 256,
         'intermediate_size': 256, 'num_hidden_layers': 1}
# Places of the float16 numbers in blocks that the package does not write.
_HALVES = {'Q2_K': (80, 82), 'Q3_K': (108,), 'Q4_K': (0, 2), 'Q5_K': (0, 2),
           'Q6_K': (208,)}
_KINDS = ('F32', 'F16', 'BF16', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1', 'Q8_0',
          *_HALVES)


def _blocks(kind, rows, rng):
  """Bytes of one block per row."""
  if kind.name not in _HALVES:
    return gguf.quantize(
        rng.normal(size=(rows, 256)).astype(np.float32), kind).view(np.uint8)
  size = gguf.GGML_QUANT_SIZES[kind][1]
  blocks = rng.integers(0, 256, (rows, size), dtype=np.uint8)
  for at in _HALVES[kind.name]:
    halves = rng.normal(size=(rows, 1)).astype(np.float16)
    blocks[:, at:at + 2] = halves.view(np.uint8)
  return blocks


def _decoded(kind, blocks):
  """Values by the package, and by transformers if it has its own decoder."""
  want = gguf.dequantize(blocks, kind)
  try:
    dequant = importlib.import_module('transformers.integrations.gguf.dequant')
  except ImportError:  # Without torch, and in older versions.
    return want
  if kind.value in dequant.GGML_BLOCK:
    other = dequant.dequantize(torch.from_numpy(blocks), kind.value).numpy()
    np.testing.assert_allclose(
        other.reshape(want.shape), want, rtol=1e-6, atol=0)
  return want


class FormatsTest(parameterized.TestCase):

  @parameterized.parameters(*_KINDS)
  def test_values_are_those_of_the_package(self, name):
    kind, rng = gguf.GGMLQuantizationType[name], np.random.default_rng(0)
    folder = tiny.temp_dir(self)
    cfg, _ = gguf_convert.make(folder / 'hf', _WIDE)
    blocks = {f'{part}.weight': _blocks(kind, rows, rng) for part, rows in (
        ('token_embd', 8), ('blk.0.attn_q', 256), ('blk.0.ffn_down', 256))}
    path = folder / 'x.gguf'
    gguf_convert.convert(folder / 'hf', path, cfg, _WIDE, raw={
        part: (rows, kind) for part, rows in blocks.items()})
    got = loading.load(path).params
    embed, q, down = (_decoded(kind, rows) for rows in blocks.values())
    np.testing.assert_array_equal(got['embed'], embed)
    np.testing.assert_array_equal(got['layers']['mlp']['down'][0], down.T)
    heads = tiny.pair_rotary(
        np.asarray(got['layers']['attn']['q'][0]).reshape(256, -1).T, 4)
    np.testing.assert_array_equal(heads, q)
    self.assertGreater(np.abs(down).max(), 1.0)


def _read(arch, ignore=(), **changes):
  """The config of a file with these keys and an embedding only."""
  keys = {
      'block_count': 2, 'context_length': 64, 'embedding_length': 32,
      'feed_forward_length': 48, 'attention.head_count': 4,
      'attention.layer_norm_rms_epsilon': 1e-6} | {
          name.replace('__', '.'): value for name, value in changes.items()}
  keys = {key: value for key, value in keys.items() if value is not None}
  extra = {k: v for k, v in keys.items() if k.endswith('.weight')}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'x.gguf'

    def add(writer):
      gguf_convert.no_vocabulary(writer)
      for key, value in keys.items():
        if key not in extra:
          _add(writer, f'{arch}.{key}', value)

    tiny.write_gguf_of(path, arch, add, extra | {
        'token_embd.weight': np.zeros((1, 32), np.float32)} | {
            f'{i}.weight': np.zeros(1, np.float32) for i in range(69)})
    return gguf_config.read_config(gguf_io.open_file(path), ignore)


def _add(writer, key, value):
  if isinstance(value, list):
    writer.add_array(key, value)
  else:
    {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string
     }[type(value)](key, value)


class KeysTest(parameterized.TestCase):

  @parameterized.parameters(
      ('gemma2', 26, 12, 12**-0.5), ('gemma2', 46, 12, 8**-0.5),
      ('gemma3', 46, 12, 12**-0.5), ('gemma3', 62, 12, 8**-0.5))
  def test_scale_of_queries_follows_the_size(self, arch, layers, width, want):
    cfg = _read(arch, block_count=layers, attention__key_length=width)
    self.assertAlmostEqual(cfg.score_scale, want)
    self.assertEqual(cfg.embed_scale, 32**0.5)

  @parameterized.parameters(
      ('gemma2', {}, (4096, 0) * 2),
      ('gemma2', {'attention__sliding_window': 7}, (7, 0) * 2),
      ('gemma3', {}, ()),
      ('gemma3', {'attention__sliding_window': 7}, (7,) * 4),
      ('gemma3', {'attention__sliding_window': 7,
                  'attention__sliding_window_pattern': 2}, (7, 0) * 2),
      ('gemma3', {'attention__sliding_window': 7,
                  'attention__sliding_window_pattern': [True, True, False,
                                                        True]}, (7, 7, 0, 7)),
      ('phi3', {'attention__sliding_window': 7}, (7,) * 4),
      ('phi3', {'attention__sliding_window': 0}, ()),
      ('qwen2', {}, ()))
  def test_windows_of_layers(self, arch, changes, want):
    self.assertEqual(_read(arch, block_count=4, **changes).windows, want)

  def test_defaults_are_those_of_llama_cpp(self):
    cfg = _read('gemma2')
    self.assertEqual((cfg.attn_soft_cap, cfg.logits_soft_cap), (50.0, 30.0))
    cfg = _read('gemma3', attention__sliding_window=7)
    self.assertEqual((cfg.attn_soft_cap, cfg.logits_soft_cap), (0.0, 0.0))
    self.assertEqual((cfg.rope_theta, cfg.window_rope_theta), (1e4, 1e4))
    cfg = _read('gemma3', rope__freq_base=1e6, rope__freq_base_swa=500.0)
    self.assertEqual((cfg.rope_theta, cfg.window_rope_theta), (1e6, 500.0))
    cfg = _read('qwen3')
    self.assertEqual((cfg.d_head, cfg.num_kv_heads, cfg.rope_theta),
                     (8, 4, 1e4))
    self.assertEqual(_read('qwen3', attention__key_length=12).d_head, 12)

  def test_keys_without_effect(self):
    want = _read('llama')
    self.assertEqual(want, _read(
        'llama', rope__scaling__finetuned=1, tensor_data_layout='x',
        expert_count=0, expert_used_count=0))
    self.assertEqual(want, _read('llama', ('strange',), strange=2))
    with self.assertRaisesRegex(ValueError, 'unknown llama keys ..expert_cou'):
      _read('llama', expert_count=8)
    with self.assertRaisesRegex(ValueError, 'head_count = 0'):
      _read('llama', ('attention.head_count',), attention__head_count=0)

  @parameterized.parameters(
      ('qwen3', {'rope__scaling__type': 'longrope'},
       "qwen3.rope.scaling.type = 'longrope' and the tensors .* wanted one of"),
      ('phi3', {'rope_factors_long.weight': np.ones(4, np.float32)},
       r"factors .'rope_factors_long.weight'.; wanted .*'rope_factors_short.w"),
      ('qwen2', {'rope__scaling__type': 'xpos'}, "= 'xpos' and"),
      ('llama', {'rope__scaling__attn_factor': 1.5},
       "attn_factor = 1.5 and rotary scaling 'none'; wanted 1"),
      ('qwen2', {'rope__dimension_count': 4},
       'qwen2.rope.dimension_count = 4; wanted the head width 8'),
      ('phi3', {'rope__dimension_count': 10},
       'phi3.rope.dimension_count = 10; wanted the head width 8'),
      ('gemma2', {'attention__value_length': 12},
       'gemma2.attention.value_length = 12; wanted the head width 8'),
      ('gpt2', {'attention__layer_norm_epsilon': 1e-5}, 'unknown gpt2 keys'),
      ('gpt2', {'attention__layer_norm_rms_epsilon': None},
       "lacks the gpt2 keys .'attention.layer_norm_epsilon'"),
      ('gpt2', {'attention__layer_norm_rms_epsilon': None,
                'attention__layer_norm_epsilon': 1e-5,
                'attention__head_count_kv': 2},
       'gpt2.attention.head_count_kv = 2; wanted 4'),
      ('gpt2', {'attention__layer_norm_rms_epsilon': None,
                'attention__layer_norm_epsilon': 1e-5,
                'attention__key_length': 12},
       'gpt2.attention.key_length = 12; wanted the head width 8'),
      ('qwen2', {'attention__scale': 2.0}, 'unknown qwen2 keys'),
      ('qwen3', {'block_count': 71}, 'has 70 tensors, but its config has 71'),
      ('qwen3', {'block_count': 2.0}, 'block_count = 2.0; wanted one whole'),
      ('qwen3', {'attention__head_count': 64}, 'wanted positive widths'),
      ('gemma3', {'attention__sliding_window': 7,
                  'attention__sliding_window_pattern': [True]},
       'pattern with 1 values; wanted 2'),
      ('gemma3', {'attention__sliding_window_pattern': 0},
       'pattern = 0; wanted one number'),
      ('gemma3', {'attention__sliding_window': [7, 7]},
       'sliding_window = .*; wanted one whole number. Per-layer'))
  def test_what_cannot_be_computed_is_named(self, arch, changes, message):
    with self.assertRaisesRegex(ValueError, message) as caught:
      _read(arch, **changes)
    self.assertNotIn('\n', str(caught.exception))


if __name__ == '__main__':
  absltest.main()
