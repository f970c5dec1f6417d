"""Tokenizers of GGUF files give the tokens of their models."""

import importlib
import importlib.util
import itertools
import json
import random

from absl.testing import absltest
from absl.testing import parameterized
import tokenizers

from mansu_jax.models.io import gguf_tokenizer
from mansu_jax.models.io import gguf_words
from mansu_jax.models.io import loading
from tests.models import tiny
from tests.models.io import gguf_convert

_HAS_TORCH = importlib.util.find_spec('torch') is not None
_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6
_SPECIAL = [('<unk>', 0.0, _UNKNOWN), ('<s>', 0.0, _CONTROL),
            ('</s>', 0.0, _CONTROL)]
_BYTES = [(f'<0x{i:02X}>', 0.0, _BYTE) for i in range(256)]
_TEXTS = (
    'the capital of this land', ' the', '  two  blanks ', 'a\nb\n\n', 'naïve é',
    'that theatre\tis thatched', '', 'in the inn, then: 12 + 345?')
_WITHOUT_PIECE = 'ïé:'


def _pieces():
  """Letters and substrings of words, with distinct scores in random order."""
  words = ['▁▁'] + [f'▁{w}' for w in ' '.join(_TEXTS).split()
                    if not set(w) & set(_WITHOUT_PIECE)]
  long = {w[a:b] for w in words for a, b in itertools.combinations(
      range(len(w) + 1), 2) if 2 <= b - a <= 6}
  rng = random.Random(0)
  long = rng.sample(sorted(long), len(long) // 2)
  letters = sorted({x for w in words for x in w})
  return [(piece, -float(i), _NORMAL)
          for i, piece in enumerate(long + letters)]


def _metadata(vocabulary, arch='llama', **keys):
  """Of a SentencePiece vocabulary of (token, score, kind)."""
  tokens, scores, kinds = map(list, zip(*vocabulary))
  found = {'model': 'llama', 'tokens': tokens, 'scores': scores,
           'token_type': kinds} | keys
  return {f'tokenizer.ggml.{key}': value for key, value in found.items()} | {
      'general.architecture': arch, f'{arch}.context_length': 64}


def _greedy(text, vocabulary):
  """SentencePiece's BPE, step by step: the leftmost of the best pairs."""
  scores = {piece: score for piece, score, _ in vocabulary}
  symbols = list('▁' + text.replace(' ', '▁')) if text else []
  while True:
    found = [(scores[a + b], -i) for i, (a, b) in enumerate(
        zip(symbols, symbols[1:])) if a + b in scores]
    if not found:
      break
    i = -max(found)[1]
    symbols[i:i + 2] = [symbols[i] + symbols[i + 1]]
  out = []
  for symbol in symbols:
    out += [symbol] if symbol in scores else [
        f'<0x{byte:02X}>' for byte in symbol.encode()]
  return out


def _build(*args, **kwargs):
  return gguf_tokenizer.build(_metadata(*args, **kwargs), 'f')


def _tokens(tokenizer, text):
  return tokenizer.convert_ids_to_tokens(tokenizer(text)['input_ids'])


class SentencePieceTest(parameterized.TestCase):

  def test_the_best_pair_is_joined_first(self):
    vocabulary = _SPECIAL + _BYTES + _pieces()
    tokenizer = _build(vocabulary)
    for text in _TEXTS:
      got = _tokens(tokenizer, text)
      self.assertEqual(got, ['<s>'] + _greedy(text, vocabulary), text)
      self.assertEqual(
          tokenizer.decode(tokenizer(text)['input_ids'][1:]), text)

  def test_scores_by_hand(self):
    letters = [(x, -9.0, _NORMAL) for x in '▁abc']
    tokenizer = lambda ab, bc: _build(_SPECIAL + _BYTES + letters + [
        ('ab', ab, _NORMAL), ('bc', bc, _NORMAL), ('▁a', -5.0, _NORMAL)])
    self.assertEqual(_tokens(tokenizer(-1.0, -2.0), 'abc'),
                     ['<s>', '▁', 'ab', 'c'])
    self.assertEqual(_tokens(tokenizer(-2.0, -1.0), 'abc'),
                     ['<s>', '▁a', 'bc'])
    self.assertEqual(_tokens(tokenizer(-1.0, -2.0), 'é'),
                     ['<s>', '▁', '<0xC3>', '<0xA9>'])

  def test_letters_without_bytes_are_unknown(self):
    tokenizer = _build(_SPECIAL + [('▁', -1.0, _NORMAL), ('a', -2.0, _NORMAL)])
    self.assertEqual(_tokens(tokenizer, 'aéxa'), [
        '<s>', '▁', 'a', '<unk>', 'a'])

  def test_special_tokens_are_not_split(self):
    tokenizer = _build(_SPECIAL + _BYTES + _pieces() + [('<x>', -1e3, _USER)])
    self.assertEqual(_tokens(tokenizer, 'a</s>a<x> a'), [
        '<s>', '▁', 'a', '</s>', '▁', 'a', '<x>', '▁', '▁', 'a'])
    self.assertEqual(tokenizer.decode(
        tokenizer('a</s>a<x>')['input_ids'], skip_special_tokens=True)[-3:],
                     '<x>')

  def test_gemma_has_no_blank_before_and_keeps_runs(self):
    tokenizer = _build(
        _SPECIAL + _BYTES + _pieces() + [('  ', -1e3, _USER),
                                         ('\n\n', -1e3, _USER)],
        arch='gemma2', add_space_prefix=False)
    self.assertEqual(_tokens(tokenizer, 'a  a\n\n'), [
        '<s>', 'a', '  ', 'a', '\n\n'])
    self.assertEqual(
        tokenizer.decode(tokenizer('a  a\n\n')['input_ids'][1:]), 'a  a\n\n')

  @parameterized.parameters(('phi3', False), ('llama', True))
  def test_phi3_takes_blanks_behind_its_tokens(self, arch, kept):
    tokenizer = _build(_SPECIAL + _BYTES + _pieces() + [
        ('<|user|>', 0.0, _CONTROL)], arch=arch)
    self.assertEqual(_tokens(tokenizer, '<|user|>\na'), [
        '<s>', '<|user|>', '▁', *['<0x0A>'] * kept, 'a'])
    self.assertIn('<0x0A>', _tokens(tokenizer, '<s>\na'))

  @parameterized.parameters(
      ({}, ['<s>', '▁', 'a']),
      ({'add_bos_token': False}, ['▁', 'a']),
      ({'add_eos_token': True}, ['<s>', '▁', 'a', '</s>']),
      ({'add_bos_token': False, 'add_eos_token': True, 'eos_token_id': 1},
       ['▁', 'a', '<s>']))
  def test_flags(self, keys, want):
    tokenizer = _build(_SPECIAL + _BYTES + [
        ('▁', -1.0, _NORMAL), ('a', -2.0, _NORMAL)], **keys)
    self.assertEqual(_tokens(tokenizer, 'a'), want)
    folder = tiny.temp_dir(self)
    tokenizer.save_pretrained(folder)
    again = type(tokenizer).from_pretrained(folder)
    self.assertEqual(_tokens(again, 'a'), want)

  @parameterized.parameters(
      ({'scores': [0.0]}, '261 tokens, 261 of them distinct, and 1 scores'),
      ({'scores': [float('nan')] * 261}, '261 scores, 0 of them finite'),
      ({'scores': ['a'] * 261}, 'an array of 261 as scores'),
      ({'tokens': ['a'] * 261}, '261 tokens, 1 of them distinct'),
      ({'token_type': [1] * 261, 'unknown_token_id': 2**32 - 1},
       '0 byte tokens and no unknown token; wanted 256'),
      ({'bos_token_id': 999}, 'bos_token_id = 999; wanted an id below 261'),
      ({'add_space_prefix': 'no'}, "add_space_prefix = 'no'; wanted one of"),
      ({'add_eos_token': [1]}, r'add_eos_token = .1.; wanted one of'),
      ({'model': 't5'}, "model = 't5'; wanted one of .'gpt2', 'llama'"))
  def test_damaged_vocabularies_are_refused(self, keys, message):
    vocabulary = _SPECIAL + _BYTES + [('a', -1.0, _NORMAL), ('b', -2.0, 1)]
    with self.assertRaisesRegex(ValueError, message):
      _build(vocabulary, **keys)

  @parameterized.parameters('scores', 'tokens', 'token_type')
  def test_missing_keys_are_named(self, name):
    metadata = _metadata(_SPECIAL + _BYTES)
    del metadata[f'tokenizer.ggml.{name}']
    with self.assertRaisesRegex(ValueError, f'lacks tokenizer.ggml.*{name}'):
      gguf_tokenizer.build(metadata, 'f')

  def test_a_model_with_its_vocabulary(self):
    vocabulary = (_SPECIAL + _BYTES + _pieces())[:96]
    tokens, scores, kinds = map(list, zip(*vocabulary))
    fields = dict(gguf_convert.CASES)['gemma2']
    folder = tiny.temp_dir(self)
    cfg, _ = gguf_convert.make(folder / 'hf', fields)

    def add(writer, tokens=tokens):
      writer.add_tokenizer_model('llama')
      writer.add_token_list(tokens)
      writer.add_token_scores(scores)
      writer.add_token_types(kinds)
      writer.add_eos_token_id(2)
      writer.add_add_space_prefix(False)

    path = folder / 'x.gguf'
    gguf_convert.convert(folder / 'hf', path, cfg, fields, add)
    model = loading.load(path)
    self.assertEqual((model.config.bos_token_id, model.config.eos_token_id),
                     (1, 2))
    self.assertEqual(_tokens(model.tokenizer, '\n'), ['<s>', '<0x0A>'])
    scores.append(0.0)
    kinds.append(_NORMAL)
    gguf_convert.convert(folder / 'hf', path, cfg, fields, lambda writer: add(
        writer, tokens + ['x']))
    with self.assertRaisesRegex(
        ValueError, 'has 97 tokens; wanted at most 96, the rows'):
      loading.load(path)

  @absltest.skipUnless(_HAS_TORCH, "transformers' GGUF reader needs torch")
  def test_tokens_are_those_of_transformers_conversion(self):
    import transformers  # pylint: disable=g-import-not-at-top
    vocabulary = _SPECIAL + _BYTES + _pieces()
    tokens, scores, kinds = map(list, zip(*vocabulary))
    folder = tiny.temp_dir(self)

    def add(writer):
      writer.add_tokenizer_model('llama')
      writer.add_token_list(tokens)
      writer.add_token_scores(scores)
      writer.add_token_types(kinds)
      writer.add_bos_token_id(1)
      writer.add_eos_token_id(2)
      writer.add_unk_token_id(0)

    tiny.write_gguf_of(folder / 'x.gguf', 'llama', add, {})
    want = transformers.AutoTokenizer.from_pretrained(
        folder, gguf_file='x.gguf')
    got = _build(vocabulary)
    for text in _TEXTS:
      if text[:1] != ' ':  # Its Metaspace then adds none, as llama.cpp does.
        self.assertEqual(
            got(text)['input_ids'], want(text)['input_ids'], text)


_HARD = ("I'LL don't  stay\n\n  in 12345 places,,, e.g. \tGermanyAnd/or\n"
         ' été e\u0301 ǅ_x $+<=> ½² 中文字 ...\r\n  ')


def _split(name, text):
  """The words that a rule makes, by the letters of the text."""
  rule = gguf_words.RULES[name].make()
  return [text[a:b] for _, (a, b) in rule.pre_tokenize_str(text)]


def _build_bpe(**keys):
  found = {'model': 'gpt2', 'tokens': tiny.VOCAB, 'merges': tiny.MERGES,
           'token_type': tiny.KINDS, 'bos_token_id': 1} | keys
  return gguf_tokenizer.build(
      {f'tokenizer.ggml.{key}': value for key, value in found.items()} | {
          'general.architecture': 'qwen3', 'qwen3.context_length': 64}, 'f')


class WordRulesTest(parameterized.TestCase):

  @parameterized.parameters(
      ('gpt-2', ['I', "'", 'LL', ' don', "'t", ' ', ' 123', ' 4567', '!?',
                 ' \n\n', ' x']),
      ('smollm', ['I', "'", 'LL', ' don', "'t", '  ', '1', '2', '3', ' ', '4',
                  '5', '6', '7', '!?', ' \n\n', ' x']),
      ('default', ['I', "'", 'LL', ' don', "'", 't', ' ', ' ', '123', ' ',
                   '456', '7', '!?', ' \n\n', ' x']),
      ('qwen2', ['I', "'LL", ' don', "'t", ' ', ' ', '1', '2', '3', ' ', '4',
                 '5', '6', '7', '!?', ' \n\n', ' x']),
      ('llama-bpe', ['I', "'LL", ' don', "'t", ' ', ' ', '123', ' ', '456', '7',
                     '!?', ' \n\n', ' x']),
      ('gpt-4o', ["I'LL", " don't", ' ', ' ', '123', ' ', '456', '7', '!?',
                  ' \n\n', ' x']))
  def test_words_by_hand(self, name, want):
    self.assertEqual(_split(name, "I'LL don't  123 4567!? \n\n x"), want)

  @absltest.skipUnless(_HAS_TORCH, "transformers' GGUF reader needs torch")
  def test_words_are_those_of_transformers(self):
    try:
      theirs = importlib.import_module(
          'transformers.integrations.gguf.gguf_tokenizer_mapping')
    except ImportError:
      self.skipTest('this version of transformers has no rules')
    common = gguf_words.RULES.keys() & theirs.GGUF_PRE_TOKENIZER_SPLITS.keys()
    self.assertContainsSubset(
        {'llama-bpe', 'qwen2', 'tekken', 'gpt-4o', 'dbrx'}, common)
    for name in common:
      want = tokenizers.pre_tokenizers.Split(
          tokenizers.Regex(theirs.GGUF_PRE_TOKENIZER_SPLITS[name]), 'isolated')
      self.assertEqual(
          _split(name, _HARD),
          [piece for piece, _ in want.pre_tokenize_str(_HARD)], name)

  def test_qwen2_composes_accents_first(self):
    one, other = (_build_bpe(pre=pre).backend_tokenizer.normalizer
                  for pre in ('qwen2', 'deepseek-r1-qwen'))
    self.assertEqual(one.normalize_str('e\u0301'), 'é')
    self.assertIsNone(other)

  @parameterized.parameters(
      ({'pre': 'llama-bpe'}, True), ({'pre': 'qwen2'}, False), ({}, False),
      ({'pre': 'llama-bpe', 'add_bos_token': False}, False),
      ({'pre': 'qwen2', 'add_bos_token': True}, True))
  def test_bos_without_a_flag(self, keys, want):
    ids = _build_bpe(**keys)('a')['input_ids']
    self.assertEqual(ids, [1] * want + [tiny.VOCAB.index('a')])

  def test_every_rule_is_found_from_its_tokenizer(self):
    for name, rule in gguf_words.RULES.items():
      found = gguf_words.word_rule(json.loads(
          _build_bpe(pre=name).backend_tokenizer.to_str()))
      self.assertEqual(gguf_words.RULES[found], rule, name)


if __name__ == '__main__':
  absltest.main()
