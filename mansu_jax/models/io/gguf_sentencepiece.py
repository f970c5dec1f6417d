"""Builds the tokenizer of a SentencePiece vocabulary in a GGUF file.

The vocabulary is one of BPE (Llama 2, Mistral, Gemma, Phi 3): of all
neighbours, the two whose union has the highest score are joined first, and
letters without a token become bytes. The tokenizers package joins by rank, so
all pairs of tokens that give a token are ranked by its score. Of equal scores
SentencePiece takes the leftmost, which ranks cannot say; only overlapping ways
to the same token, such as (aa, a) and (a, aa), can tell them apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import normalizers

_SPACE = '▁'  # U+2581, which stands for a blank in tokens.
_NORMAL = 1  # Value of tokenizer.ggml.token_type.


def build(
    found: Mapping[str, Any], unknown: int | None) -> tokenizers.Tokenizer:
  """Builds a tokenizer without special tokens.

  Args:
    found: The `tokenizer.ggml.` keys, without the prefix.
    unknown: Id of the token for letters whose bytes have no token, or None.
  """
  tokens = found['tokens']
  backend = tokenizers.Tokenizer(models.BPE(
      vocab={token: i for i, token in enumerate(tokens)},
      merges=merges(tokens, found['scores'], found['token_type']),
      unk_token=None if unknown is None else tokens[unknown],
      fuse_unk=True, byte_fallback=True))
  blanks = normalizers.Replace(' ', _SPACE)
  decoded = [decoders.Replace(_SPACE, ' '), decoders.ByteFallback(),
             decoders.Fuse()]
  if found.get('add_space_prefix', True):
    # Also after special tokens, as llama.cpp and Llama's tokenizer.json.
    blanks = normalizers.Sequence([normalizers.Prepend(_SPACE), blanks])
    decoded.append(decoders.Strip(' ', 1, 0))
  backend.normalizer = blanks
  backend.decoder = decoders.Sequence(decoded)
  return backend


def merges(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
  """All pairs of tokens that give a normal token, by its score.

  Example:
    >>> merges(['a', 'b', 'ab', 'aba'], [-9., -9., -2., -1.], [1, 1, 1, 1])
    [('ab', 'a'), ('a', 'b')]
  """
  known, ranked = frozenset(tokens), []
  for i, (token, score, kind) in enumerate(zip(tokens, scores, kinds)):
    if kind != _NORMAL:
      continue
    for cut in range(len(token) - 1, 0, -1):
      if token[:cut] in known and token[cut:] in known:
        ranked.append((-score, -cut, i))
  ranked.sort()
  return [(tokens[i][:-cut], tokens[i][-cut:]) for _, cut, i in ranked]
