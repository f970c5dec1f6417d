"""The content of a report: blocks that become Markdown and HTML.

All text is plain; the renderers escape it.
"""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
  """A paragraph."""

  text: str


class Bullets(NamedTuple):
  """A bullet list."""

  items: tuple[str, ...]


class Table(NamedTuple):
  """A table; the first `labels` columns hold text, the others figures."""

  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  labels: int = 1
  caption: str = ''  # Quantity, unit, data, and how to read it.


class Plot(NamedTuple):
  """A chart, written to `plots/<name>.svg`."""

  name: str
  svg: str
  caption: str


class Plots(NamedTuple):
  """Charts, side by side where the page is wide enough."""

  items: tuple[Plot, ...]


class Card(NamedTuple):
  """The verdict on one property."""

  letter: str
  title: str
  state: bool | str  # True, False or 'inconclusive'.
  headline: str  # Value with interval.
  threshold: str
  meaning: str
  notes: tuple[str, ...]


class Cards(NamedTuple):
  """The properties, side by side where the page is wide enough."""

  items: tuple[Card, ...]


class Code(NamedTuple):
  """Verbatim text."""

  text: str


Block = Text | Bullets | Table | Plots | Cards | Code


class Section(NamedTuple):
  """A heading and its blocks."""

  title: str
  blocks: tuple[Block, ...]


class Report(NamedTuple):
  """A complete report."""

  title: str
  state: bool | str | None  # The verdict; None where nothing is judged.
  sentence: str
  sections: tuple[Section, ...]

  def plots(self) -> list[Plot]:
    """All charts, in order."""
    return [plot for section in self.sections for block in section.blocks
            if isinstance(block, Plots) for plot in block.items]
