"""The page of a comparison: forgetting against retention, and relearning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mansu_jax.report import document
from mansu_jax.report import table
from mansu_jax.report import words
from mansu_jax.report.charts import drawing
from mansu_jax.report.charts import frontier
from mansu_jax.report.charts import svg

Record = dict[str, Any]

_FRONTIER = (
    'What each method has left of the forgotten facts against what it loses of'
    ' the held-out ones; the lower left corner is best. Full marks: full'
    ' precision; the line leads to the same weights under a quantizer (hollow),'
    ' each against the base at its own precision. Means over seeds.')
_CURVE = (
    'Forget facts that the attack {} does not teach, asked {}. Means over'
    ' seeds.')


def make_report(
    by_method: Mapping[str, Sequence[Record]],
    tables: Sequence[document.Table], notes: Sequence[str],
    differences: document.Table | None) -> document.Report:
  """The report of a comparison.

  Args:
    by_method: records of the finished runs of each method, not all empty.
    tables: of them, from `table.tables`.
    notes: what went wrong, a sentence each.
    differences: from the first method, or None.
  """
  runs = [record for records in by_method.values() for record in records]
  first, *_ = by_method
  sections = [document.Section('Forgetting against retention', (
      *_frontier(by_method), *tables))]
  if curves := tuple(_curves(by_method)):
    sections.append(document.Section(
        'Relearning', (document.Plots(curves),)))
  if differences:
    sections.append(document.Section(
        f'Differences from {first}', (differences,)))
  if notes:
    sections.append(document.Section(
        'What went wrong', (document.Bullets(tuple(notes)),)))
  return document.Report(
      f'Comparison on {runs[0]["model"].get("name", "")}', None,
      f'{words.count(len(by_method), "method")},'
      f' {words.count(len(runs), "finished run")}.', tuple(sections))


def _frontier(
    by_method: Mapping[str, Sequence[Record]]) -> Iterator[document.Block]:
  """The chart, if forgetting and held-out facts were measured."""
  methods = []
  for i, (name, records) in enumerate(by_method.items()):
    precisions = ('fp', *records[0]['config']['quant_schemes']) if (
        records) else ()
    points = [_point(records, precision) for precision in precisions]
    if points and None not in points:
      methods.append(frontier.Method(name, drawing.colour(i), points))
  if methods:
    yield document.Plots((document.Plot('frontier', frontier.frontier(
        'Forgetting against retention', methods,
        x_label='held-out facts lost, share of questions',
        y_label='known in the worst reading, share of the base\'s'),
        _FRONTIER),))


def _point(
    records: Sequence[Record], precision: str) -> frontier.Point | None:
  """What is lost of held-out facts, and known of forgotten ones."""
  points = []
  for record in records:
    known = table.known(record, precision)
    try:
      before, after = (
          record['accuracy'][table.HELDOUT][model][precision]['value']
          for model in ('base', 'unlearned'))
    except KeyError:
      return None
    if known is None:
      return None
    points.append((before - after, known))
  lost, left = np.mean(points, axis=0)
  return frontier.Point(precision, float(lost), float(left))


def _attacks(record: Record) -> Record:
  return record.get('attacks') or {}


def _curves(
    by_method: Mapping[str, Sequence[Record]]) -> Iterator[document.Plot]:
  """A chart for each attack and precision: accuracy by step."""
  attacks = dict.fromkeys(
      (attack, precision) for records in by_method.values()
      for record in records for attack, found in _attacks(record).items()
      for precision in found)
  for attack, precision in attacks:
    series = []
    for i, (name, records) in enumerate(by_method.items()):
      by_step: dict[int, list[float]] = {}
      for record in records:
        for one in _attacks(record).get(attack, {}).get(precision, ()):
          by_step.setdefault(one['step'], []).append(one['value'])
      if by_step:
        series.append(svg.Series(name, drawing.colour(i), [
            (step, float(np.mean(values)))
            for step, values in sorted(by_step.items())]))
    where = 'in full precision' if precision == 'fp' else f'under {precision}'
    yield document.Plot(
        f'relearning_{attack}_{precision}', svg.line_chart(
            f'{attack}, {precision}', series, x_label='step',
            y_label='untaught facts answered', colours=True),
        _CURVE.format(attack, where))
