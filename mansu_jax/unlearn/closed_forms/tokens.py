"""Which tokens of the forget prompts an edit may change, and their cells."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def first_own(
    prompts: Sequence[Sequence[int]], facts: Sequence[str],
    others: Sequence[Sequence[int]]) -> np.ndarray:
  """The first token of each prompt that no text of another fact shares.

  A causal model has the same state at a token wherever the tokens up to it are
  the same, so no edit can tell these texts apart there.

  Example:
    >>> first_own([[1, 5, 2], [1, 6, 2]], ['a', 'b'], [[1, 6, 3]])
    array([1, 2])

  Args:
    prompts: token ids of n prompts.
    facts: their facts.
    others: token ids of texts about other facts.

  Returns:
    Positions, int [n]; the last one of a prompt that is shared as a whole.
  """
  owner: dict[tuple[int, ...], str | None] = {}
  for tokens, fact in (
      *((tokens, None) for tokens in others), *zip(prompts, facts)):
    beginning: tuple[int, ...] = ()
    for token in tokens:
      beginning += int(token),
      if owner.setdefault(beginning, fact) != fact:
        owner[beginning] = None
  return np.array([next(
      (at for at in range(len(tokens)) if owner[
          tuple(map(int, tokens[:at + 1]))] is not None), len(tokens) - 1)
                   for tokens in prompts])


def cells(
    keys: Sequence[Sequence[Hashable]], facts: Sequence[str],
    counts: Sequence[int]) -> list[np.ndarray]:
  """The cell of each of the last tokens of each prompt.

  Prompts of one key are aligned at their ends. A token that is farther from the
  end than in any other fact's prompt joins the cell behind it.

  Example:
    >>> cells([['x'], ['x'], ['x']], ['a', 'b', 'b'], [3, 2, 1])
    [array([1, 1, 0]), array([1, 0]), array([0])]

  Args:
    keys: of each of n prompts, from the narrowest to the widest. It has the
      first that prompts of another fact have, too; otherwise the last.
    facts: their facts.
    counts: number of tokens of each, counted from its end.

  Returns:
    n arrays of cells, int, in the order of the tokens.
  """
  out: list[np.ndarray] = [np.zeros(0, int)] * len(facts)
  left, used = list(range(len(facts))), 0
  for level in range(len(keys[0])):
    members: dict[Hashable, list[int]] = {}
    for i in left:
      members.setdefault(keys[i][level], []).append(i)
    left = []
    for rows in members.values():
      longest: dict[str, int] = {}
      for i in rows:
        longest[facts[i]] = max(longest.get(facts[i], 0), int(counts[i]))
      if len(longest) == 1 and level < len(keys[0]) - 1:
        left += rows
        continue
      most = sorted(longest.values())[-2:][0]
      for i in rows:
        distance = np.arange(counts[i])[::-1]
        out[i] = used + np.minimum(distance, most - 1)
      used += most
  return out
