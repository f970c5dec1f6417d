"""General text: what the model must keep predicting as before."""

from __future__ import annotations

import dataclasses
import pathlib

from mansu_jax.data.readers import jsonl


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextDocument:
  """One document.

  Attributes:
    text: its text.
    kind: sort of text (`prose`, `code`, ...); results are given by kind.
  """

  text: str
  kind: str


def read_text(path: str) -> list[TextDocument]:
  """Reads documents from a `.txt` file or JSONL with `text` and `kind`.

  A `.txt` file is one document whose kind is the file's stem.

  Raises:
    ValueError: the file is missing, empty or malformed.
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
        f'{path}: is empty; wanted text. Fill the file or leave out its flag.')
  return TextDocument(text=text, kind=resolved.stem)


def by_kind(documents: list[TextDocument]) -> dict[str, list[TextDocument]]:
  """Groups documents by kind, kinds in order of first appearance."""
  groups: dict[str, list[TextDocument]] = {}
  for document in documents:
    groups.setdefault(document.kind, []).append(document)
  return groups
