"""Chooses the wrong choices of a question, the same in every run.

A hash of the question's id and the candidate orders the candidates, so a new
candidate does not change the choices of most questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import hashlib

NUM_CHOICES = 4


def _digest(*parts: str) -> str:
  return hashlib.sha256('|'.join(parts).encode()).hexdigest()


def gives_away(choice: str, text: str) -> bool:
  """Whether text or choice contains the other; ignores short choices."""
  choice, text = choice.lower(), text.lower()
  return len(choice) > 2 and (choice in text or text in choice)


def choose(key: str, answer: str, candidates: Iterable[str]) -> list[str]:
  """Chooses the answer and three wrong choices, in hashed order.

  Candidates whose first letters differ from the choices so far come first,
  because the first token distinguishes them.

  Args:
    key: Id of the question.
    answer: The right choice.
    candidates: Possible wrong choices.

  Raises:
    ValueError: there are fewer than three candidates.
  """
  ordered = sorted(candidates, key=lambda text: _digest(key, text))
  chosen, shared = [answer], []
  for candidate in ordered:
    opens = candidate[:3].lower() in {text[:3].lower() for text in chosen}
    (shared if opens else chosen).append(candidate)
  chosen = (chosen + shared)[:NUM_CHOICES]
  if len(chosen) < NUM_CHOICES:
    raise ValueError(
        f'{key}: got {len(ordered)} wrong choices; wanted'
        f' {NUM_CHOICES - 1}. Add distractors to the relation.')
  # The first hash would put the answer last most of the time.
  return sorted(chosen, key=lambda text: _digest('place', key, text))


def choose_sets(
    keys: Sequence[str], answer: str, pool: Iterable[str]) -> list[list[str]]:
  """Chooses one set of choices for each key.

  Args:
    keys: Ids of questions with the same prompt.
    answer: The right choice of all of them.
    pool: Possible wrong choices.

  Returns:
    The choices of each key. Wrong choices differ from those of earlier keys
    until the pool has fewer than three left; then the whole pool is used again.

  Raises:
    ValueError: the pool has fewer than three entries.

  Example:
    >>> first, second = choose_sets(['a', 'b'], 'iron', [
    ...     'tin', 'zinc', 'lead', 'gold', 'neon', 'argon'])
    >>> sorted({*first} & {*second})
    ['iron']
  """
  pool, used, sets = set(pool), set(), []
  for key in keys:
    if len(pool - used) < NUM_CHOICES - 1:
      used = set()
    sets.append(choose(key, answer, pool - used))
    used.update(sets[-1])
  return sets
