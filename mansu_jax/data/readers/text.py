"""Reads general text, whose prediction unlearning must not change."""

from __future__ import annotations

import dataclasses
import pathlib

from mansu_jax.data.readers import jsonl


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDocument:
  """One document.

  Attributes:
    text: The document's text.
    kind: Kind of text, such as `prose` or `code`; perplexity is given by kind.
  """

  text: str
  kind: str


def read_text(path: str) -> list[TextDocument]:
  """Reads documents from a `.txt` file or JSONL with `text` and `kind`.

  A `.txt` file is one document whose kind is the file's stem.

  Args:
    path: A file, or `shipped:NAME`.

  Raises:
    ValueError: the file is missing, empty or malformed.

  Example:
    >>> documents = read_text('shipped:text_heldout')
    >>> len(by_kind(documents)['legal'])
    8
  """
  resolved = jsonl.resolve(path)
  if resolved.suffix == '.txt':
    return [_plain(path, resolved)]
  return [
      TextDocument(
          text=jsonl.take_string(where, record, 'text'),
          kind=jsonl.take_string(where, record, 'kind'))
      for where, record in jsonl.read_records(path)
  ]


def _plain(path: str, resolved: pathlib.Path) -> TextDocument:
  text = jsonl.read_text(path)
  if not text.strip():
    raise ValueError(
        f'{path}: is empty; wanted text. Fill the file or remove its flag.')
  return TextDocument(text=text, kind=resolved.stem)


def by_kind(documents: list[TextDocument]) -> dict[str, list[TextDocument]]:
  """Groups documents by kind, kinds in order of first appearance."""
  groups: dict[str, list[TextDocument]] = {}
  for document in documents:
    groups.setdefault(document.kind, []).append(document)
  return groups
