"""Builds a fast tokenizer from the metadata of a GGUF file.

Supports byte-level BPE (`tokenizer.ggml.model` = 'gpt2'), whose rule to split
text into words `gguf_words.py` has, and SentencePiece vocabularies ('llama'),
which `gguf_sentencepiece.py` explains.
"""

from __future__ import annotations

import array
from collections.abc import Mapping, Sequence
import math
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import processors

from mansu_jax import types
from mansu_jax.models.io import gguf_sentencepiece
from mansu_jax.models.io import gguf_words
from mansu_jax.runtime import messages

# Values of tokenizer.ggml.token_type.
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_BPE, _SENTENCEPIECE = 'gpt2', 'llama'  # Values of tokenizer.ggml.model.
# Of SentencePiece vocabularies without these keys, as in llama.cpp.
_SENTENCEPIECE_IDS = {
    'unknown_token_id': 0, 'bos_token_id': 1, 'eos_token_id': 2}
_PHI3_KEEPS_BLANKS = frozenset({'<unk>', '<s>', '<|endoftext|>'})
_CHAT_TEMPLATE = 'tokenizer.chat_template'
_NO_VOCABULARY = ('none', 'no_vocab')  # Models that take token ids only.


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
  merges = _merges(found, where) if found['model'] == _BPE else []
  template = metadata.get(_CHAT_TEMPLATE)
  if not isinstance(template, str | None):
    raise ValueError(
        f'{where} has {_CHAT_TEMPLATE} = {messages.shorten(template)};'
        ' wanted text. Convert the model again with its tokenizer.')
  import transformers  # pylint: disable=g-import-not-at-top

  make = transformers.PreTrainedTokenizerFast
  architecture = metadata['general.architecture']
  try:
    return make(
        **_parts(found, merges, architecture), chat_template=template,
        model_max_length=metadata[f'{architecture}.context_length'],
        clean_up_tokenization_spaces=False)
  except MemoryError:
    raise
  except Exception as error:  # The tokenizers package raises this class.
    raise ValueError(
        f'The vocabulary in {where} gives no tokenizer'
        f' ({messages.shorten(str(error))}); wanted byte-level BPE or'
        ' SentencePiece. The file is damaged; download or convert it again.'
    ) from error


def _parts(
    found: Mapping[str, Any], merges: Sequence[tuple[str, str]],
    architecture: str) -> dict[str, Any]:
  """Backend and special tokens, as arguments of the transformers class."""
  tokens = found['tokens']
  if found['model'] == _BPE:
    backend = _byte_level_bpe(found, merges)
  else:
    backend = gguf_sentencepiece.build(found, special_id(found, 'unknown'))
  _add_tokens(backend, found, architecture)
  special = {
      f'{short}_token': tokens[special_id(found, long)]
      for short, long in (('bos', 'bos'), ('eos', 'eos'), ('unk', 'unknown'),
                          ('pad', 'padding'))
      if special_id(found, long) is not None}
  added = {name: bool(found.get(f'add_{name}_token', default))
           for name, default in _added_by_default(found).items()}
  if any(added.values()):
    backend.post_processor = _template(found, **added)
  return {'tokenizer_object': backend} | special | {
      f'add_{name}_token': value for name, value in added.items()}


def _added_by_default(found: Mapping[str, Any]) -> dict[str, bool]:
  """Whether texts get BOS and EOS if the file has no flag; as in llama.cpp."""
  if found['model'] == _SENTENCEPIECE:
    return {'bos': True, 'eos': False}
  rule = gguf_words.RULES[gguf_words.rule_of(found)]
  known = special_id(found, 'bos') is not None
  return {'bos': rule.add_bos and known, 'eos': False}


def ggml_keys(metadata: Mapping[str, Any]) -> dict[str, Any]:
  """The `tokenizer.ggml.` keys of a file, without the prefix."""
  prefix = 'tokenizer.ggml.'
  found = {key.removeprefix(prefix): value
           for key, value in metadata.items() if key.startswith(prefix)}
  if found.get('model') == _SENTENCEPIECE:
    return _SENTENCEPIECE_IDS | found
  return found


def _check(found: Mapping[str, Any], where: str) -> None:
  wanted = {'model': (_BPE, _SENTENCEPIECE)}
  if found.get('model') == _BPE:
    wanted |= {'pre': (None, *gguf_words.RULES),
               'add_space_prefix': (False, None)}
  else:
    wanted |= {'add_space_prefix': (True, False, None)}
  wanted |= dict.fromkeys(
      ('add_bos_token', 'add_eos_token'), (True, False, None))
  shown = lambda key: messages.shorten(found.get(key))
  for key, values in wanted.items():
    value = found.get(key)
    if not isinstance(value, str | int | None) or value not in values:
      raise ValueError(
          f'{where} has tokenizer.ggml.{key} = {shown(key)}; wanted one of'
          f' {list(values)}. Use the Hugging Face directory of this model,'
          ' which has a tokenizer.json.')
  _check_vocabulary(found, where)
  for name in ('bos', 'eos'):
    key, flag = f'{name}_token_id', f'add_{name}_token'
    if key in found and special_id(found, name) is None:
      raise ValueError(
          f'{where} has tokenizer.ggml.{key} = {shown(key)}; wanted an id'
          f' below {len(found["tokens"])}, the number of tokens. Convert the'
          ' model again with its tokenizer.')
    if found.get(flag) and key not in found:
      raise ValueError(
          f'{where} has {flag} but no {name.upper()} token; wanted'
          f' tokenizer.ggml.{key}. Convert the model again.')


def _check_vocabulary(found: Mapping[str, Any], where: str) -> None:
  rest, kind = ('merges', str) if found['model'] == _BPE else ('scores', float)
  missing = [k for k in ('tokens', rest, 'token_type') if k not in found]
  if missing:
    raise ValueError(
        f'{where} lacks tokenizer.ggml keys {missing}; wanted a vocabulary,'
        f' its {rest} and its token types. Convert the model again with its'
        ' tokenizer.')
  tokens, others, kinds = found['tokens'], found[rest], found['token_type']
  if not (_are(tokens, str) and _are(others, kind) and _are(kinds, int)
          and len(kinds) == len(tokens)):
    raise ValueError(
        f'{where} has {_counted(tokens)} as tokens, {_counted(others)} as'
        f' {rest} and {_counted(kinds)} as token types; wanted strings,'
        f' {"strings" if kind is str else "numbers"}, and one number per token.'
        ' Convert the model again with its tokenizer.')
  if kind is str:
    return
  distinct = len(frozenset(tokens))
  finite = sum(map(math.isfinite, others))
  if distinct != len(tokens) or finite != len(tokens):
    raise ValueError(
        f'{where} has {len(tokens)} tokens, {distinct} of them distinct, and'
        f' {len(others)} scores, {finite} of them finite; wanted distinct'
        ' tokens, and one finite score per token. The file is damaged;'
        ' download it again.')
  bytes_ = list(kinds).count(_BYTE)
  if bytes_ < 256 and special_id(found, 'unknown') is None:
    raise ValueError(
        f'{where} has {bytes_} byte tokens and no unknown token; wanted 256, or'
        ' tokenizer.ggml.unknown_token_id, because letters would be lost.'
        ' Convert the model again with its tokenizer.')


def _are(values: Any, kind: type[Any]) -> bool:
  """Whether `values` is an array of this kind; checks one element."""
  return isinstance(values, (list, array.array)) and (
      not values or isinstance(values[0], kind))


def _counted(values: Any) -> str:
  """Describes an array by its length, for a message."""
  if not isinstance(values, (list, array.array)):
    return messages.shorten(values)
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
        f' {messages.shorten(broken[:1])}); wanted distinct tokens, and'
        ' merges that join two tokens into a third. The file is damaged;'
        ' download it again.')
  return merges


def _byte_level_bpe(
    found: Mapping[str, Any], merges: Sequence[tuple[str, str]]
) -> tokenizers.Tokenizer:
  rule = gguf_words.RULES[gguf_words.rule_of(found)]
  backend = tokenizers.Tokenizer(models.BPE(
      vocab={token: i for i, token in enumerate(found['tokens'])},
      merges=merges, ignore_merges=rule.whole_first))
  if rule.nfc:
    backend.normalizer = rule.normalizer()
  backend.pre_tokenizer = rule.make()
  backend.decoder = decoders.ByteLevel()
  backend.post_processor = processors.ByteLevel(trim_offsets=False)
  return backend


def _add_tokens(
    backend: tokenizers.Tokenizer, found: Mapping[str, Any],
    architecture: str) -> None:
  """Adds the tokens that stay whole in texts."""
  sentencepiece = found['model'] == _SENTENCEPIECE
  # Those of Phi 3 take the blanks behind them; no key says so.
  strips = sentencepiece and architecture == 'phi3'
  special = (_CONTROL, _UNKNOWN) if sentencepiece else (_CONTROL,)
  for kinds, add in ((special, backend.add_special_tokens),
                     ((_USER_DEFINED,), backend.add_tokens)):
    add([tokenizers.AddedToken(
        token, normalized=False, special=_USER_DEFINED not in kinds,
        rstrip=strips and token not in _PHI3_KEEPS_BLANKS)
         for token, kind in zip(found['tokens'], found['token_type'])
         if kind in kinds])


def _template(
    found: Mapping[str, Any], bos: bool, eos: bool
) -> processors.PostProcessor:
  """Adds BOS before, and EOS behind, each text."""
  tokens = {name: found['tokens'][found[f'{name}_token_id']]
            for name, used in (('bos', bos), ('eos', eos)) if used}
  around = lambda part: ' '.join(filter(None, (
      tokens.get('bos'), part, tokens.get('eos'))))
  return processors.TemplateProcessing(
      single=around('$A'), pair=f'{around("$A")} {around("$B")}',
      special_tokens=[(token, found[f'{name}_token_id'])
                      for name, token in tokens.items()])
