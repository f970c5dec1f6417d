"""CAD and AS-NC with their nulls, and the output-suppression control."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg

Record = dict[str, Any]

NULLS = {
    'prompt_halves': 'base on two halves of the prompts',
    'base_quantized': 'quantized base',
    'random_circuits': 'random circuits of the same shape',
    'suppression': 'output-suppression control',
    'guessing': 'guessing',
}


class _Measure(NamedTuple):
  """CAD or AS-NC."""

  key: str
  name: str
  data: str
  side: str  # Of its nulls, where erasure would lie.


_MEASURES = (
    _Measure('cad', 'CAD', 'on the circuit, forget pairs', 'above'),
    _Measure('as_nc', 'AS-NC', 'off the circuit, retain pairs', 'below'))


def blocks(record: Record) -> Iterator[document.Block]:
  """CAD and AS-NC with their nulls; nothing for records without them."""
  if 'cad' not in record:
    return
  found = [m for m in _MEASURES if record.get(m.key)]
  yield from (document.Text(text) for text in _unmeasured(record))
  if not found:
    return
  yield document.Text(
      'CAD compares the attribution scores of the circuit\'s nodes before and'
      ' after unlearning, on forget pairs: 0 unchanged, 1 gone, above 1'
      ' reversed. AS-NC is the same for the nodes outside the circuit, on'
      ' retain pairs, and should be low. Compare both with their nulls:'
      ' values that arise without erasing this circuit.')
  yield document.Text(_control(record.get('suppression_control')))
  yield from map(document.Text, _remarks(record))
  yield document.Plots(tuple(_plot(m, record[m.key]) for m in found))
  yield document.Table(
      ('measure', 'data or null', 'value [95 % interval]',
       'level, difference or pairs'),
      tuple(row for m in found for row in _rows(m, record[m.key])), labels=2,
      caption='CAD and AS-NC of the unlearned model with 95 % intervals by'
      ' fact, and their nulls, in full precision and per quantizer. Resampled'
      ' nulls have a mean and a level: CAD should lie above the 95 % level,'
      ' AS-NC below it. Other nulls have one value and the paired difference'
      ' (measure minus null): it should be above 0 for CAD and below 0 for'
      ' AS-NC.')


def _unmeasured(record: Record) -> Iterator[str]:
  """Reasons of what is missing, one sentence for both if they share it."""
  reasons: dict[str, list[str]] = {}
  for measure in _MEASURES:
    if not record.get(measure.key):
      why = record.get('unmeasured', {}).get(measure.key) or 'it was skipped'
      reasons.setdefault(why.rstrip('.'), []).append(measure.name)
  for why, names in reasons.items():
    verb = 'was' if len(names) == 1 else 'were'
    yield f'{words.listing(names)} {verb} not measured: {why}.'


def _remarks(record: Record) -> Iterator[str]:
  """The limits of CAD, and identical random circuits."""
  yield ('CAD and AS-NC decide nothing: scores sum to the output, so they'
         ' fade on every circuit once the answer is gone, whether it was erased'
         ' or hidden.')
  for measure in _MEASURES:
    nulls = (record.get(measure.key) or {}).get('nulls', {})
    if warning := nulls.get('random_circuits', {}).get('warning'):
      yield warning


def _control(found: Record | None) -> str:
  if not found:
    return ('This run has no output-suppression control: an edit that only'
            ' hides the answers and leaves the same share of forget questions'
            ' answered. Compare with one before you claim erasure.')
  shares = (f'{words.percent(found["answered"])} against'
            f' {words.percent(found["wanted"])}, judged by first tokens')
  text = ('The output-suppression control is the base with a changed down'
          ' projection in its last layer: an edit that hides answers and erases'
          ' none. It is scaled to answer as few forget questions as the'
          ' unlearned model')
  if not found.get('matched', True):
    return (f'{text}, but does not reach that share ({shares}), so it is not'
            ' used as a null.')
  return (f'{text} ({shares}). Its CAD is above 0, because scores fade with the'
          ' answer even where it is only hidden; readability, below, inspects'
          ' the hidden states instead. The control is in full precision, also'
          ' where it is compared with a quantized model.')


def _rows(measure: _Measure, found: Record) -> Iterator[tuple[str, ...]]:
  name = measure.name
  yield (name, measure.data, words.estimate(found),
         words.count(found['pairs'], 'pair'))
  for null, values in found['nulls'].items():
    yield name, f'null: {NULLS.get(null, null)}', *null_cells(values)
  for precision, other in found.get('by_precision', {}).items():
    yield name, f'{precision}: {measure.data}', words.estimate(other), ''
    for null, values in other['nulls'].items():
      if null != 'prompt_halves':  # It does not depend on the precision.
        yield (name, f'{precision}, null: {NULLS.get(null, null)}',
               *null_cells(values))


def null_cells(values: Record) -> tuple[str, str]:
  """The value of a null, and its level or the paired difference."""
  if 'difference_interval' in values and 'value' in values:
    return (words.number(values['value']),
            'paired difference'
            f' {words.interval(values["difference_interval"], 3, True)}')
  level = next((k for k in ('level_95', 'level_5') if k in values), None)
  if level is None:
    return words.number(values.get('value')), ''
  return (f'mean {words.number(values["mean"])}',
          f'{level.removeprefix("level_")} % level'
          f' {words.number(values[level])}'
          f' ({words.count(values["draws"], "draw")})')


def _plot(measure: _Measure, found: Record) -> document.Plot:
  rows = [svg.Row(measure.name, [svg.Dot(found['value'], found['interval'])])]
  for null, values in found['nulls'].items():
    level = values.get('level_95')
    middle = values.get('mean', values.get('value'))
    bounds = None if level is None else sorted((middle, level))
    rows.append(svg.Row(
        NULLS.get(null, null), [svg.Dot(middle, bounds, 'null')]))
  chart = svg.dot_chart(
      f'{measure.name}: {measure.data}', rows,
      label=f'{measure.name} (0 unchanged, 1 gone, above 1 reversed)',
      legend=[svg.Key('after unlearning, 95 % interval', 'unlearned'),
              svg.Key('null, mean to 95 % level', 'null')])
  return document.Plot(
      measure.key, chart,
      f'{measure.name} and its nulls in full precision. It should lie'
      f' {measure.side} them.')
