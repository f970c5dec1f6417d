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
from mansu_jax.report.sections import attacks

Record = dict[str, Any]

_FRONTIER = (
    'What each method has left of the forgotten facts against what it loses of'
    ' the held-out ones; the lower left corner is best. Full marks: full'
    ' precision; the line leads to the same weights under a quantizer (hollow),'
    ' each against the base at its own precision. Means over seeds; models that'
    ' collapsed are left out.')
_CURVE = (
    'Forget facts that the attack {} does not teach, asked {}. Means over'
    ' seeds.')
_SURE = 0.05
_DIFFERENCES = (
    'Shares of questions answered right, less those of the first method, with'
    ' 95 % intervals over facts and seeds: of forgotten facts in new phrasings'
    ' and with unseen choices, and of held-out facts. The gap is the share when'
    ' quantized less that in full precision. Only seeds count that both methods'
    ' have finished without a collapse. A star: the interval excludes 0, and'
    ' p < 0.05 by random signs of each fact, with Holm\'s correction over the'
    ' methods of a column.')


def make_report(
    by_method: Mapping[str, Sequence[Record]],
    tables: Sequence[document.Table], notes: Sequence[str],
    less_first: document.Table | None) -> document.Report:
  """The report of a comparison.

  Args:
    by_method: records of the finished runs of each method, not all empty.
    tables: of them, from `table.tables`.
    notes: what went wrong, a sentence each.
    less_first: from `differences`, or None.
  """
  runs = [record for records in by_method.values() for record in records]
  first, *_ = by_method
  sections = [document.Section('Forgetting against retention', (
      *_frontier(by_method), *tables))]
  if curves := tuple(_curves(by_method)):
    sections.append(document.Section(
        'Relearning', (document.Plots(curves),)))
  if less_first:
    sections.append(document.Section(
        f'Differences from {first}', (less_first,)))
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
  for i, (name, runs) in enumerate(by_method.items()):
    records = [record for record in runs if not table.collapsed(record)]
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
  measured = dict.fromkeys(
      (attack, precision) for records in by_method.values()
      for record in records for attack, found in _attacks(record).items()
      for precision in found)
  for attack, precision in measured:
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
            f'{attack}, {precision}', series, x_label=attacks.unit(attack),
            y_label='untaught facts answered', colours=True),
        _CURVE.format(attack, where))


def differences(
    found: dict[str, dict[str, Record]], reference: str) -> document.Table:
  """A table of the differences of methods from one of them.

  Args:
    found: `{method: {measure: entry}}`; an entry is an estimate with the
      p-value `p_adjusted`.
    reference: name of the method that all others are compared with.
  """
  measures = list(dict.fromkeys(m for of in found.values() for m in of))

  def cell(entry):
    if entry is None:
      return words.MISSING
    low, high = entry['interval']
    sure = ' *' if entry['p_adjusted'] < _SURE and (
        low is not None and high is not None and low * high > 0) else ''
    return f'{words.estimate(entry, sign=True)}{sure}'

  return document.Table(
      (f'less {reference}', 'seeds', *measures),
      tuple((method, _seeds(of), *(cell(of.get(m)) for m in measures))
            for method, of in found.items()),
      labels=2, caption=_DIFFERENCES)


def _seeds(of: dict[str, Record]) -> str:
  """How many seeds the differences of a method are over."""
  return str(max(len(entry['by_seed']) for entry in of.values()))
