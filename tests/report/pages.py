"""Reads report files back, strictly, for the tests."""

from __future__ import annotations

from html import parser
import re

_VOID = {'meta', 'br', 'hr', 'link', 'img', 'input'}


class Page(parser.HTMLParser):
  """Checks that tags nest, and collects tags, attributes and table cells."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.open, self.tags, self.attributes = [], [], []
    self.text = ''
    self.tables: list[list[list[str]]] = []
    self.feed(text)
    self.close()
    if self.open:
      raise ValueError(f'Never closed: {self.open}')

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs
    if tag not in _VOID:
      self.open.append(tag)
    if tag == 'table':
      self.tables.append([])
    elif tag == 'tr':
      self.tables[-1].append([])
    elif tag in ('td', 'th'):
      self.tables[-1][-1].append('')

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += attrs

  def handle_endtag(self, tag):
    if not self.open or self.open[-1] != tag:
      raise ValueError(f'</{tag}> closes {self.open[-1:]}')
    self.open.pop()

  def handle_data(self, data):
    if 'style' not in self.open:
      self.text += data
    if self.open and self.open[-1] in ('td', 'th'):
      self.tables[-1][-1][-1] += data

  def table(self, *heads: str) -> list[list[str]]:
    """The rows of the first table that begins with these columns."""
    return next(t[1:] for t in self.tables if tuple(t[0][:len(heads)]) == heads)


def pipe_tables(markdown: str) -> list[list[list[str]]]:
  """Every table of a Markdown text as rows of cells, fences left out."""
  prose = re.sub(r'^(`{3,})text\n.*?^\1$', '', markdown, flags=re.S | re.M)
  tables, last = [], None
  for number, line in enumerate(prose.splitlines()):
    if not line.startswith('|'):
      continue
    if last != number - 1:
      tables.append([])
    last = number
    cells = re.split(r'(?<!\\)\|', line)
    if cells[0] or cells[-1]:
      raise ValueError(f'A row does not end in a pipe: {line}')
    tables[-1].append([cell.strip() for cell in cells[1:-1]])
  return tables
