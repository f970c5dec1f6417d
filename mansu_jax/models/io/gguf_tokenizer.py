"""Builds a fast tokenizer from the metadata of a GGUF file.

Supports byte-level BPE (`tokenizer.ggml.model` = 'gpt2'). The file contains the
vocabulary and the merges; `tokenizer.ggml.pre` names the rule that splits text
into words. This module defines the rules as llama.cpp does
(src/llama-vocab.cpp).
"""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence
import json
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import processors

from mansu_jax import types
from mansu_jax.models.io import gguf_header

_CONTROL, _USER_DEFINED = 3, 4  # Values of tokenizer.ggml.token_type.

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+')


def _gpt2_words() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm_words() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence(
      [pre_tokenizers.Digits(individual_digits=True), _gpt2_words()])


def _llama3_words() -> pre_tokenizers.PreTokenizer:
  return pre_tokenizers.Sequence([
      pre_tokenizers.Split(tokenizers.Regex(_LLAMA3_WORDS), 'isolated'),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_WORDS = {
    'gpt-2': _gpt2_words,
    'llama-bpe': _llama3_words,
    'smollm': _smollm_words,
}
_WHOLE_WORDS_FIRST = ('llama-bpe',)  # Words in the vocabulary stay whole.
_CHAT_TEMPLATE = 'tokenizer.chat_template'
_NO_VOCABULARY = ('none', 'no_vocab')  # Models that take token ids only.


def word_rule(fields: Mapping[str, Any]) -> str | None:
  """Finds the GGUF name of the rule by which a tokenizer splits text.

  Args:
    fields: Parsed `tokenizer.json`.

  Returns:
    Name of a supported rule; None for another rule, or for a tokenizer that is
    not plain byte-level BPE.
  """
  model = fields['model']
  plain = model['type'] == 'BPE' and fields['normalizer'] is None and not any(
      model.get(key) for key in (
          'byte_fallback', 'continuing_subword_prefix', 'end_of_word_suffix'))
  if not plain:
    return None
  for name, words in _WORDS.items():
    made = tokenizers.Tokenizer(models.BPE(
        ignore_merges=name in _WHOLE_WORDS_FIRST))
    made.pre_tokenizer = words()
    known = json.loads(made.to_str())
    if (_without_offsets(known['pre_tokenizer'])
        == _without_offsets(fields['pre_tokenizer'])
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


def build(
    metadata: Mapping[str, Any], where: str) -> types.PretrainedTokenizer:
  """Builds a `transformers.PreTrainedTokenizerFast`.

  Args:
    metadata: Keys and values of the file.
    where: Path of the file, for messages.

  Returns:
    The tokenizer; None if the file has no vocabulary.

  Raises:
    ValueError: the tokenizer is of another kind, or metadata is missing.
  """
  found = ggml_keys(metadata)
  if found.get('model') in _NO_VOCABULARY:
    return None
  _check(found, where)
  merges = _merges(found, where)
  template = metadata.get(_CHAT_TEMPLATE)
  if not isinstance(template, str | None):
    raise ValueError(
        f'{where} has {_CHAT_TEMPLATE} = {gguf_header.shorten(template)};'
        ' wanted text. Convert the model again with its tokenizer.')
  import transformers  # pylint: disable=g-import-not-at-top

  make = transformers.PreTrainedTokenizerFast
  try:
    return make(**_parts(found, merges), chat_template=template,
                model_max_length=metadata['llama.context_length'],
                clean_up_tokenization_spaces=False)
  except MemoryError:
    raise
  except Exception as error:  # The tokenizers package raises this class.
    raise ValueError(
        f'The vocabulary in {where} gives no tokenizer'
        f' ({gguf_header.shorten(str(error))}); wanted byte-level BPE. The'
        ' file is damaged; download or convert it again.') from error


def _parts(
    found: Mapping[str, Any], merges: Sequence[tuple[str, str]]
) -> dict[str, Any]:
  """Backend and special tokens, as arguments of the transformers class."""
  backend, tokens = _byte_level_bpe(found, merges), found['tokens']
  special = {
      f'{short}_token': tokens[special_id(found, long)]
      for short, long in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'),
                          ('pad', 'padding'))
      if special_id(found, long) is not None}
  add_bos = bool(found.get('add_bos_token', False))
  if add_bos:
    backend.post_processor = _bos_template(found)
  return {'tokenizer_object': backend, 'add_bos_token': add_bos} | special


def ggml_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """The `tokenizer.ggml.` keys of a file, without the prefix."""
  prefix = 'tokenizer.ggml.'
  return {key.removeprefix(prefix): value
          for key, value in metadata.items() if key.startswith(prefix)}


def _check(found: Mapping[str, Any], where: str) -> None:
  wanted = {'model': ('gpt2',), 'pre': tuple(_WORDS),
            'add_space_prefix': (False, None), 'add_eos_token': (False, None)}
  shown = lambda key: gguf_header.shorten(found.get(key))
  for key, values in wanted.items():
    if found.get(key) not in values:
      raise ValueError(
          f'{where} has tokenizer.ggml.{key} = {shown(key)}; wanted one of'
          f' {list(values)}. Use the Hugging Face directory of this model,'
          ' which has a tokenizer.json.')
  _check_vocabulary(found, where)
  for name in ('bos', 'eos'):
    key = f'{name}_token_id'
    if key in found and special_id(found, name) is None:
      raise ValueError(
          f'{where} has tokenizer.ggml.{key} = {shown(key)}; wanted an id'
          f' below {len(found["tokens"])}, the number of tokens. Convert the'
          ' model again with its tokenizer.')
  if not isinstance(found.get('add_bos_token', False), int):
    raise ValueError(
        f'{where} has tokenizer.ggml.add_bos_token = {shown("add_bos_token")};'
        ' wanted true or false. Convert the model again with its tokenizer.')
  if found.get('add_bos_token') and 'bos_token_id' not in found:
    raise ValueError(
        f'{where} has add_bos_token but no BOS token; wanted'
        ' tokenizer.ggml.bos_token_id. Convert the model again.')


def _check_vocabulary(found: Mapping[str, Any], where: str) -> None:
  missing = [k for k in ('tokens', 'merges', 'token_type') if k not in found]
  if missing:
    raise ValueError(
        f'{where} lacks tokenizer.ggml keys {missing}; wanted a vocabulary,'
        ' its merges and its token types. Convert the model again with its'
        ' tokenizer.')
  tokens, merges, kinds = (
      found['tokens'], found['merges'], found['token_type'])
  if not (_are(tokens, str) and _are(merges, str) and _are(kinds, int)
          and len(kinds) == len(tokens)):
    raise ValueError(
        f'{where} has {_counted(tokens)} as tokens, {_counted(merges)} as'
        f' merges and {_counted(kinds)} as token types; wanted strings,'
        ' strings, and one number per token. Convert the model again with its'
        ' tokenizer.')


def _are(values: Any, kind: type[Any]) -> bool:
  """Whether `values` is an array of this kind; checks one element."""
  return isinstance(values, (list, array.array)) and (
      not values or isinstance(values[0], kind))


def _counted(values: Any) -> str:
  """Describes an array by its length, for a message."""
  if not isinstance(values, (list, array.array)):
    return gguf_header.shorten(values)
  return f'an array of {len(values)}'


def special_id(found: Mapping[str, Any], name: str) -> int | None:
  """Id of a special token; None if the vocabulary has no such token.

  Some files without a padding token give it the id 4294967295 or another id
  beyond the vocabulary.

  Args:
    found: The `tokenizer.ggml.` keys, without the prefix.
    name: `bos`, `eos`, `unknown` or `padding`.
  """
  value = found.get(f'{name}_token_id')
  tokens = found.get('tokens')
  whole = isinstance(value, int) and not isinstance(value, bool)
  inside = whole and isinstance(tokens, list) and 0 <= value < len(tokens)
  return value if inside else None


def _merges(found: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
  """Checks the merges: each joins two tokens into a third."""
  tokens = found['tokens']
  merges = [tuple(merge.split(' ')) for merge in found['merges']]
  vocab = frozenset(tokens)
  broken = [m for m in merges if len(m) != 2 or not (
      m[0] in vocab and m[1] in vocab and ''.join(m) in vocab)]
  if len(vocab) != len(tokens) or broken:
    raise ValueError(
        f'{where} has {len(tokens)} tokens, {len(vocab)} of them distinct, and'
        f' {len(broken)} invalid merges (first:'
        f' {gguf_header.shorten(broken[:1])}); wanted distinct tokens, and'
        ' merges that join two tokens into a third. The file is damaged;'
        ' download it again.')
  return merges


def _byte_level_bpe(
    found: Mapping[str, Any], merges: Sequence[tuple[str, str]]
) -> tokenizers.Tokenizer:
  tokens, pre = found['tokens'], found['pre']
  backend = tokenizers.Tokenizer(models.BPE(
      vocab={token: i for i, token in enumerate(tokens)}, merges=merges,
      ignore_merges=pre in _WHOLE_WORDS_FIRST))
  backend.pre_tokenizer = _WORDS[pre]()
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  for kind, add in ((_CONTROL, backend.add_special_tokens),
                    (_USER_DEFINED, backend.add_tokens)):
    add([tokenizers.AddedToken(t, normalized=False, special=kind == _CONTROL)
         for t, of in zip(tokens, found['token_type']) if of == kind])
  return backend


def _bos_template(found: Mapping[str, Any]) -> processors.PostProcessor:
  bos_id = found['bos_token_id']
  bos = found['tokens'][bos_id]
  return processors.TemplateProcessing(
      single=f'{bos} $A', pair=f'{bos} $A {bos} $B',
      special_tokens=[(bos, bos_id)])
