"""Renders a report as Markdown."""

from __future__ import annotations

import html
import re

from mansu_jax.report import document
from mansu_jax.report import words

# Underscores within words and lone brackets have no meaning in Markdown.
_SPECIAL = re.compile(r'([\\`*|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[\[(:]))')
_AT_START = re.compile(r'^(\d*)(#+|[+\-=.)])(?=\s|$)')


def escape(text: str) -> str:
  """Plain text as one line of Markdown; `⏎` replaces line breaks."""
  line = ' ⏎ '.join(part.strip() for part in text.splitlines()).strip()
  line = _SPECIAL.sub(r'\\\1', html.escape(line, quote=False))
  return _AT_START.sub(r'\1\\\2', line)


def table(block: document.Table) -> str:
  """A caption paragraph, then a pipe table."""
  figures = len(block.columns) - block.labels
  rules = ['---'] * block.labels + ['---:'] * figures
  row = lambda cells: f'| {" | ".join(cells)} |'
  lines = [escape(block.caption), ''] if block.caption else []
  lines += [row([escape(c) for c in block.columns]), row(rules)]
  lines += [row([escape(c) for c in cells]) for cells in block.rows]
  return '\n'.join(lines)


def _plots(block: document.Plots) -> str:
  return '\n\n'.join(map(_plot, block.items))


def _plot(plot: document.Plot) -> str:
  """An image and its caption, whose first sentence is the alternative text."""
  alternative = plot.caption.split('. ')[0].removesuffix('.')
  return (f'![{escape(alternative)}](plots/{plot.name}.svg)\n\n'
          f'{escape(plot.caption)}')


def _bullets(block: document.Bullets) -> str:
  return '\n'.join(f'- {escape(item)}' for item in block.items)


def _cards(block: document.Cards) -> str:
  lines = []
  for card in block.items:
    state = words.verdict(card.state).upper()
    lines.append(f'**{card.letter}: {escape(card.title)}: {state}.**'
                 f' {escape(card.headline)}; {escape(card.threshold)}.')
    lines += [f'  - {escape(note)}' for note in (card.meaning, *card.notes)]
  return '\n'.join(
      line if line.startswith('  ') else f'- {line}' for line in lines)


def _code(block: document.Code) -> str:
  longest = max((len(m) for m in re.findall('`+', block.text)), default=0)
  fence = '`' * max(3, longest + 1)
  return f'{fence}text\n{block.text.rstrip()}\n{fence}'


_BLOCKS = {
    document.Text: lambda block: escape(block.text),
    document.Bullets: _bullets,
    document.Table: table,
    document.Plots: _plots,
    document.Cards: _cards,
    document.Code: _code,
}


def render(report: document.Report) -> str:
  """The report as a Markdown document."""
  parts = [f'# {escape(report.title)}', f'**{escape(report.sentence)}**']
  for section in report.sections:
    parts.append(f'## {escape(section.title)}')
    parts += [_BLOCKS[type(block)](block) for block in section.blocks]
  return '\n\n'.join(parts) + '\n'
