"""Values of damaged files in error messages: short, and on one line."""

from __future__ import annotations

import reprlib
from typing import Any

_MOST = 600  # Letters of another package's message.
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
shorten = _repr.repr  # Formats a value of a file.


def bare(value: Any) -> str:
  """As `shorten`, without the quotation marks of a text."""
  return shorten(value).strip('\'"')


def one_line(text: str) -> str:
  """A message of another package, printable and cut in the middle.

  Example:
    >>> one_line('no such\\nthing: \\x1b')
    'no such thing: ?'
  """
  text = ' '.join(text.split())
  text = ''.join(x if x.isprintable() else '?' for x in text)
  half = _MOST // 2
  return text if len(text) <= _MOST else f'{text[:half]} ... {text[-half:]}'
