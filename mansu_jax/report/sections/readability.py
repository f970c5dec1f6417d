"""Readability: the forget answers that a linear lens reads in the states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg
from mansu_jax.report.sections import divergence

Record = dict[str, Any]

_CURVES = {  # Model -> name and style of its curve.
    'base': ('base', 'base'), 'unlearned': ('unlearned', 'unlearned'),
    'suppression': ('suppression control', 'null')}
_CHECKS = {
    'within_guessing': 'readability within the guessing level',
    'not_avoided': 'right answers not avoided in any layer',
    'below_prompt_halves': 'readability below that of the base',
    'below_base_quantized': 'readability below that of the quantized base',
    'below_suppression': 'readability below that of the suppression control'}


def blocks(record: Record) -> Iterator[document.Block]:
  """Readability with its nulls; nothing for records without it."""
  found = record.get('readability')
  if not found:
    return
  if 'value' not in found:
    yield document.Text(f'Readability was not measured: {found["reason"]}.')
    return
  yield document.Text(
      'Readability is the share of the base\'s knowledge of the forget answers'
      ' that a linear lens still reads in the hidden states of the best layer,'
      ' at the last token of the prompt: 1 is all of it, 0 is guessing. The'
      f' lens of each layer is fitted on {found["fitted_on"]:,} retain'
      ' questions and never sees a forget question. It finds answers that are'
      ' hidden after the layers that bring them to the last token, where the'
      ' base\'s curve rises. It does not see knowledge at other tokens, or'
      ' knowledge that no linear map finds.')
  yield document.Text(_outcome(found))
  yield document.Text(_verdict(found))
  yield document.Plots((_plot(found),))
  yield document.Table(
      ('readability of', 'value [95 % interval]',
       'level, difference or questions'), tuple(_rows(found)), labels=1,
      caption='Readability of the unlearned model and of its nulls (share of'
      ' the base\'s). Best minus last layer: share of forget questions that'
      ' the best layer\'s lens answers, minus that of the last layer, or of'
      ' guessing where guessing is higher. Paired difference: the unlearned'
      ' model minus the null; below 0, less is readable than in the null.')


def _outcome(found: Record) -> str:
  """Readability, the answers hidden in the best layer, and avoidance."""
  hidden, least = found['hidden'], found.get('avoided')
  text = (f'Readability is {words.estimate(found)}. The lens of the best layer'
          f' ({hidden["layer"]}) exceeds the last layer by'
          f' {words.signed(hidden["value"])}'
          f' {words.interval(hidden["interval"], 3, True)} in the share of'
          f' questions answered{_guessing(hidden)}.')
  if least:
    text += (f' The layer with the fewest right answers ({least["layer"]})'
             f' answers {words.estimate(least)} of the questions; guessing'
             f' answers at least {words.number(least["guessing_level_5"])} (5 %'
             ' level).')
  return text


def _guessing(hidden: Record) -> str:
  """The same difference when guessing."""
  level = hidden.get('guessing_level_95')
  return '' if level is None else (
      f' (by guessing: at most {words.signed(level)}, 95 % level)')


def _verdict(found: Record) -> str:
  """The verdict at each precision, with the checks that did not pass."""
  verdicts = {'full precision': found} | found.get('by_precision', {})
  parts = [f'{precision} {words.verdict(one["passed"])} ({_why(one)})'
           for precision, one in verdicts.items()]
  return ('Verdict of readability, in addition to the four properties:'
          f' {", ".join(parts)}.')


def _why(found: Record) -> str:
  by_state: dict[str, list[str]] = {}
  for name, passed in found['checks'].items():
    if passed is not True:
      by_state.setdefault(words.verdict(passed), []).append(
          _CHECKS.get(name, name))
  if not by_state:
    return 'no more is readable than by guessing'
  return '; '.join(f'{state} checks: {words.listing(names)}'
                   for state, names in by_state.items())


def _plot(found: Record) -> document.Plot:
  series = [
      svg.Series(name, style, list(enumerate(found['by_layer'][model])))
      for model, (name, style) in _CURVES.items()
      if model in found['by_layer']]
  return document.Plot('readability', svg.line_chart(
      'Forget questions answered by the lens of each layer', series,
      x_label='layer (0: embedding)', y_label='share of questions',
      width=svg.WIDE),
                       'Share of forget questions that the lens of each layer'
                       ' answers. A model that hides its answers in a late'
                       ' layer answers them in the layers before.')


def _rows(found: Record) -> Iterator[tuple[str, ...]]:
  yield ('unlearned', words.estimate(found),
         words.count(found['questions'], 'question'))
  for precision, other in found['by_precision'].items():
    hidden = other['hidden']
    yield (f'unlearned, {precision}', words.estimate(other),
           f'best minus last layer {words.signed(hidden["value"])}'
           f'{_guessing(hidden)}')
  for null, values in found['nulls'].items():
    yield (f'null: {divergence.NULLS.get(null, null)}',
           *divergence.null_cells(values))
