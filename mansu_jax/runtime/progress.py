"""Shows progress bars and counts tokens.

Wrap the items of a loop in `track`, and call `count_tokens` wherever a model
processes tokens; `clock.Clock` computes tokens per second from the count.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import contextlib
import logging as std_logging
import sys
from typing import Any, TypeVar

import tqdm

_Item = TypeVar('_Item')


class _Counter:
  """Tokens of this process since its start."""

  tokens: int = 0


_counter = _Counter()


def track(
    items: Iterable[_Item], name: str, *, total: int | None = None,
    start: int = 0) -> Iterator[_Item]:
  """Yields items and shows a progress bar with the remaining time.

  The bar appears only if standard error is a terminal, and disappears at the
  end.

  Args:
    items: Items of the loop.
    name: Label of the bar.
    total: Number of items, if `items` has no length.
    start: Number of items that an earlier run has done.
  """
  bar = tqdm.tqdm(
      items, desc=name, total=total, initial=start, leave=False, disable=None,
      file=sys.stderr, dynamic_ncols=True)
  with contextlib.closing(bar):
    yield from bar


def count_tokens(tokens: int) -> None:
  """Adds a number of tokens that a model has processed, without padding."""
  _counter.tokens += int(tokens)


def tokens() -> int:
  """Number of tokens counted so far."""
  return _counter.tokens


class ClearBarsFilter(std_logging.Filter):
  """Keeps log lines out of progress bars."""

  def filter(self, record: Any) -> bool:
    """Clears the bars before a log line; their next update redraws them."""
    del record
    for bar in list(getattr(tqdm.tqdm, '_instances', ())):
      bar.clear()
    return True
