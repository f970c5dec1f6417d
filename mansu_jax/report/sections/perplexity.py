"""Perplexity on held-out text, overall and by kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.charts import svg
from mansu_jax.report.sections import accuracy

Record = dict[str, Any]

_TITLE = 'Perplexity on held-out text'
_ALL = 'all kinds'


def section(record: Record) -> document.Section:
  """Perplexities and their ratios to the base's."""
  if not any(record['perplexity'].get(m) for m in accuracy.MODELS):
    return document.Section(_TITLE, (document.Text(
        'Not measured: no held-out text was given (--data_heldout_text).'),))
  return document.Section(_TITLE, (_plot(record), document.Table(
      ('text', 'precision', 'base', 'unlearned', 'ratio'),
      tuple(_rows(record)), labels=2,
      caption='Perplexity per token (lower is better) on general text that'
      ' training never saw. Ratio: unlearned divided by base at the same'
      ' precision; above 1, the unlearned model is worse.')))


def _by_kind(record: Record) -> dict[str, Record]:
  return {_ALL: record['perplexity'], **record['perplexity_by_text']}


def _pair(
    by_model: Record, precision: str) -> tuple[float | None, float | None]:
  """Perplexity of the base and of the unlearned model."""
  base, unlearned = (
      by_model.get(m, {}).get(precision) for m in accuracy.MODELS)
  return base, unlearned


def _rows(record: Record) -> Iterator[tuple[str, ...]]:
  for kind, by_model in _by_kind(record).items():
    for precision in accuracy.precisions(record):
      base, unlearned = _pair(by_model, precision)
      yield (kind, precision, words.number(base, 2),
             words.number(unlearned, 2),
             words.number(words.ratio(unlearned, base), 4))


def _plot(record: Record) -> document.Plots:
  ratio = lambda pair: words.ratio(pair[1], pair[0])
  rows = [svg.Row(kind, [
      svg.Dot(ratio(_pair(by_model, precision)), None, 'unlearned',
              precision != 'fp')
      for precision in accuracy.precisions(record)])
          for kind, by_model in _by_kind(record).items()]
  chart = svg.dot_chart(
      'Perplexity of the unlearned model relative to the base', rows,
      label='ratio at the same precision (1: unchanged)',
      legend=accuracy.legend(record)[2:], rules=[svg.Rule(1.0, 'unchanged')])
  return document.Plots((document.Plot(
      'perplexity', chart, 'Perplexity of the unlearned model divided by that'
      ' of the base at the same precision, by kind of text.'),))
