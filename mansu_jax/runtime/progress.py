"""Progress bars with the time that is left, and a count of tokens.

Bars are drawn where standard error is a terminal, and go when they are done; a
log file never sees one. Whoever runs a model counts the tokens that it runs;
`clock.Clock` makes tokens a second of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import logging as std_logging
import sys
from typing import Any, TypeVar

import tqdm

_Item = TypeVar('_Item')


class _Count:
  """Of this process, since it started."""

  tokens: int = 0


_count = _Count()


def over(
    items: Iterable[_Item], what: str, *, total: int | None = None,
    start: int = 0) -> Iterator[_Item]:
  """Yields the items beneath a bar.

  Args:
    items: what is gone through.
    what: one is called, in the singular or as a whole; the bar's name.
    total: how many there are, where `items` does not tell.
    start: how many were done before, of a loop that goes on.
  """
  bar = tqdm.tqdm(
      items, desc=what, total=total, initial=start, leave=False, disable=None,
      file=sys.stderr, dynamic_ncols=True)
  with contextlib.closing(bar):
    yield from bar


def count(tokens: int) -> None:
  """Adds tokens that a model was run on, padding not among them."""
  _count.tokens += int(tokens)


def tokens() -> int:
  """All tokens that were counted so far."""
  return _count.tokens


class AboveBars(std_logging.Filter):
  """Lets a handler's lines stand above bars, not in them."""

  def filter(self, record: Any) -> bool:
    """Clears the bars; the next change draws them again."""
    del record
    for bar in list(getattr(tqdm.tqdm, '_instances', ())):
      bar.clear()
    return True
