"""What a report is made of; the same blocks become Markdown and HTML.

All text is plain: the renderers escape it.
"""

from __future__ import annotations

from typing import NamedTuple


class Text(NamedTuple):
  """A paragraph."""

  text: str


class Table(NamedTuple):
  """A table; the first `labels` columns hold words, the others figures."""

  columns: tuple[str, ...]
  rows: tuple[tuple[str, ...], ...]
  labels: int = 1
  caption: str = ''


class Plot(NamedTuple):
  """A chart: `plots/<name>.svg`."""

  name: str
  svg: str
  caption: str


class Plots(NamedTuple):
  """Charts side by side, where there is room."""

  items: tuple[Plot, ...]


class Card(NamedTuple):
  """One property."""

  letter: str
  title: str
  state: bool | str  # True, False or 'inconclusive'.
  headline: str  # Value with interval.
  threshold: str
  meaning: str
  notes: tuple[str, ...]


class Cards(NamedTuple):
  """The properties side by side."""

  items: tuple[Card, ...]


class Code(NamedTuple):
  """Text to copy, as it stands."""

  text: str


Block = Text | Table | Plots | Cards | Code


class Section(NamedTuple):
  """A heading and what stands under it."""

  title: str
  blocks: tuple[Block, ...]


class Report(NamedTuple):
  """The whole."""

  title: str
  state: bool | str | None  # The verdict; None: nothing is judged.
  sentence: str
  sections: tuple[Section, ...]

  def plots(self) -> list[Plot]:
    """All charts, in order."""
    return [plot for section in self.sections for block in section.blocks
            if isinstance(block, Plots) for plot in block.items]
