"""The rules by which byte-level BPE tokenizers of GGUF files split text.

`tokenizer.ggml.pre` names the rule; the file does not contain it. llama.cpp
defines the rules in src/llama-vocab.cpp, the models in their `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any, NamedTuple

import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers

_SUFFIXES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r'[^\r\n\p{L}\p{N}]?\p{L}+'
_SIGNS = r' ?[^\s\p{L}\p{N}]+[\r\n]*'
_SPACES = r'\s*[\r\n]+|\s+(?!\S)|\s+'
_LLAMA3 = rf'{_SUFFIXES}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}'
_QWEN2 = rf'{_SUFFIXES}|{_LETTERS}|\p{{N}}|{_SIGNS}|{_SPACES}'
# Words of capitals, then small letters, in either order of what they may lack.
_UPPER = r'[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]'
_LOWER = r'[\p{Ll}\p{Lm}\p{Lo}\p{M}]'
_CASED = tuple(rf'[^\r\n\p{{L}}\p{{N}}]?{_UPPER}{a}{_LOWER}{b}'
               for a, b in ('*+', '+*'))
_SIGNS_OR_SLASH = r' ?[^\s\p{L}\p{N}]+[\r\n/]*'
_TEKKEN = rf'{"|".join(_CASED)}|\p{{N}}|{_SIGNS_OR_SLASH}|{_SPACES}'
_GPT_4O = (
    '|'.join(f'{word}{_SUFFIXES}?' for word in _CASED)
    + rf'|\p{{N}}{{1,3}}|{_SIGNS_OR_SLASH}|{_SPACES}')
_GPT2 = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|"
         r'\s+(?!\S)')


class Rule(NamedTuple):
  """How one kind of tokenizer splits text.

  Attributes:
    patterns: regular expressions; each splits what the one before has left.
      Empty: GPT-2's, as the tokenizers package has it.
    digits: whether each digit is cut off first.
    whole_first: whether words in the vocabulary stay whole.
    add_bos: whether a text starts with BOS, unless the file has a flag.
    nfc: whether the text is brought to Unicode's form NFC before.
  """

  patterns: tuple[str, ...] = ()
  digits: bool = False
  whole_first: bool = False
  add_bos: bool = False
  nfc: bool = False

  def make(self) -> pre_tokenizers.PreTokenizer:
    """Builds the part of the tokenizers package."""
    gpt2 = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not self.patterns)
    parts = [pre_tokenizers.Split(tokenizers.Regex(pattern), 'isolated')
             for pattern in self.patterns]
    if self.digits:
      parts.append(pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence([*parts, gpt2]) if parts else gpt2

  def normalizer(self) -> normalizers.Normalizer | None:
    """Builds the normalizer."""
    return normalizers.NFC() if self.nfc else None


# The first name is written. llama.cpp leaves out Qwen's NFC.
RULES = {
    'gpt-2': Rule(),
    'llama-bpe': Rule((_LLAMA3,), whole_first=True, add_bos=True),
    'smollm': Rule(digits=True),
    'qwen2': Rule((_QWEN2,), nfc=True),
    'deepseek-r1-qwen': Rule((_QWEN2,)),
    'dbrx': Rule((_LLAMA3,)),  # Of Phi 4 among others.
    'gpt-4o': Rule((_GPT_4O,)),  # Of Phi 4 mini among others.
    'tekken': Rule((_TEKKEN,), whole_first=True, add_bos=True),
    'default': Rule((r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+',
                     '[0-9][0-9][0-9]'))}
RULES |= {alias: RULES[name] for alias, name in (
    ('llama3', 'llama-bpe'), ('llama-v3', 'llama-bpe'),
    ('falcon3', 'llama-bpe'), ('pixtral', 'llama-bpe'), ('smaug-bpe', 'dbrx'),
    ('megrez', 'deepseek-r1-qwen'), ('phi-2', 'gpt-2'))}


def rule_of(found: Mapping[str, Any]) -> str:
  """Name of a file's rule, from its `tokenizer.ggml.` keys; as llama.cpp."""
  return found.get('pre', 'default')


def word_rule(fields: Mapping[str, Any]) -> str | None:
  """Finds the GGUF name of the rule by which a tokenizer splits text.

  Args:
    fields: Parsed `tokenizer.json`.

  Returns:
    Name of a supported rule; None for another rule, or for a tokenizer that is
    not plain byte-level BPE.
  """
  model = fields['model']
  if model['type'] != 'BPE' or any(
      model.get(key) for key in (
          'byte_fallback', 'continuing_subword_prefix', 'end_of_word_suffix')):
    return None
  for name, rule in RULES.items():
    made = tokenizers.Tokenizer(models.BPE(ignore_merges=rule.whole_first))
    made.pre_tokenizer = rule.make()
    if rule.nfc:
      made.normalizer = rule.normalizer()
    known = json.loads(made.to_str())
    if (_without_offsets(known['pre_tokenizer'])
        == _without_offsets(fields['pre_tokenizer'])
        and known['normalizer'] == fields['normalizer']
        and known['model']['ignore_merges'] == model['ignore_merges']):
      return name
  return None


def _without_offsets(node: Any) -> Any:
  """JSON without `trim_offsets`, which does not affect tokens."""
  if isinstance(node, list):
    return [_without_offsets(x) for x in node]
  if isinstance(node, dict):
    return {k: _without_offsets(v) for k, v in node.items()
            if k != 'trim_offsets'}
  return node
