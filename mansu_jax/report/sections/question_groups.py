"""Accuracy by relation and by form of question, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg
from mansu_jax.report.sections import accuracy

Record = dict[str, Any]

_MAX_ROWS = 15
_GROUPINGS = {
    'accuracy_by_relation': 'relation', 'accuracy_by_form': 'form of question'}


class _Group(NamedTuple):
  """The questions of one relation or form in one split."""

  split: str
  name: str
  entry: Record


def section(record: Record) -> document.Section:
  """Accuracies of all groups, retain splits first."""
  blocks: list[document.Block] = []
  for key, grouping in _GROUPINGS.items():
    for side in ('retain', 'forget'):
      groups = [
          _Group(split, name, entry) for split, entries in record[key].items()
          if split.startswith(side) for name, entry in entries.items()]
      if groups:
        groups.sort(key=lambda g, side=side: -_badness(record, side, g.entry))
        blocks += [_plot(groups, grouping, side),
                   _table(record, groups, grouping, side)]
  return document.Section(
      'Accuracy by relation and form of question', tuple(blocks) or (
          document.Text('Not measured: there are no evaluation questions.'),))


def _badness(record: Record, side: str, entry: Record) -> float:
  """Largest loss on retain questions; largest accuracy on forget questions."""
  return max(
      entry['base'][p] - entry['unlearned'][p] if side == 'retain' else
      entry['unlearned'][p] for p in accuracy.precisions(record))


def _plot(
    groups: Sequence[_Group], grouping: str, side: str) -> document.Plots:
  title = f'Accuracy by {grouping}: {side} questions'
  rows = [svg.Row(f'{group.name} ({group.split})', [
      svg.Dot(group.entry[m]['fp'], None, m) for m in accuracy.MODELS])
          for group in groups[:_MAX_ROWS]]
  chart = svg.dot_chart(
      title, rows, label='accuracy in full precision (share of questions)',
      legend=[svg.Key(m, m) for m in accuracy.MODELS], limits=(0.0, 1.0),
      joined=True)
  return document.Plots((document.Plot(
      f'accuracy_by_{grouping.split()[0]}_{side}', chart,
      f'{title}, base and unlearned model in full precision.'),))


def _table(
    record: Record, groups: Sequence[_Group], grouping: str, side: str
) -> document.Table:
  order = ('the largest loss' if side == 'retain' else
           'the highest remaining accuracy')
  caption = (f'Accuracy on {side} questions by {grouping} (share of'
             ' questions), base → unlearned, and the change. The group with'
             f' {order} at any precision comes first.')
  if (omitted := len(groups) - _MAX_ROWS) > 0:
    caption += f' {omitted} more groups are in record.json.'
  heads = [head for p in accuracy.precisions(record)
           for head in (f'{p}: base → unlearned', f'{p}: change')]
  return document.Table(
      ('split', grouping, *heads, 'questions'),
      tuple(_row(record, group) for group in groups[:_MAX_ROWS]), labels=2,
      caption=caption)


def _row(record: Record, group: _Group) -> tuple[str, ...]:
  cells = []
  for p in accuracy.precisions(record):
    before, after = group.entry['base'][p], group.entry['unlearned'][p]
    cells += [f'{before:.3f} → {after:.3f}', words.signed(after - before)]
  return group.split, group.name, *cells, str(group.entry['n'])
