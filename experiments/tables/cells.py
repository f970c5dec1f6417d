"""Cells and tables of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from experiments.tables import stored
from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import words

NONE = '–'  # Not measured.
NOTHING = 'No record is stored yet.'
# Ways of asking for a forgotten fact.
WAYS = {
    'choice': 'choice of four, wrong answers as in training',
    'choice_unseen': 'choice of four, wrong answers never trained on',
    'generation': 'generated answer, where the base gives it',
    'generation_few_shot': 'generated after three solved examples, likewise',
    'reverse': 'question reversed'}
# Readings that decide, in short.
READINGS = {
    'choice': 'usual choices', 'choice_unseen': 'unseen choices',
    'generation': 'generated', 'reverse': 'reversed'}
_PRECISIONS = {'fp': 'fp', 'nf4': 'NF4', 'fp4': 'FP4', 'int4_g128': 'INT4',
               'q4_k': 'Q4_K'}


def precision(name: str) -> str:
  """The name of a precision in a table."""
  return _PRECISIONS.get(name, name)


def number(value: float | None, digits: int = 2) -> str:
  """A figure."""
  return NONE if value is None else words.number(value, digits)


def signed(value: float | None, digits: int = 3) -> str:
  """A difference."""
  return NONE if value is None else words.signed(value, digits)


def percent(value: float | None) -> str:
  """A share of the weights, in percent."""
  return NONE if value is None else words.percent(value)


def change(after: float | None, before: float | None) -> str:
  """A relative change in percent."""
  ratio = words.ratio(after, before)
  return NONE if ratio is None else f'{100 * (ratio - 1):+.1f} %'


def estimate(
    entry: dict[str, Any] | None, digits: int = 2, sign: bool = False) -> str:
  """A value with its interval."""
  if not entry or entry.get('value') is None:
    return NONE
  if all(x is None for x in entry.get('interval') or [None]):
    return (signed if sign else number)(entry['value'], digits)
  return words.estimate(entry, digits, sign)


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]],
    labels: int = 1) -> str:
  """A pipe table; `NOTHING` without rows.

  Args:
    columns: heads.
    rows: cells.
    labels: number of columns of text, which are aligned to the left.
  """
  rows = tuple(map(tuple, rows))
  if not rows:
    return NOTHING
  return markdown.table(document.Table(tuple(columns), rows, labels))


def code(runs: Iterable[stored.Run]) -> str:
  """A line that names the code that judged the runs, and what it resumed.

  Args:
    runs: any number; '' without runs.
  """
  runs = list(runs)
  commits = dict.fromkeys(run.commit[:7] for run in runs)
  earlier = {
      one['commit'][:7] for run in runs
      for one in run.record['environment'].get('earlier', ())} - commits.keys()
  trained = (f'; trained or measured in part by'
             f' {words.listing(sorted(earlier))}' if earlier else '')
  return f'Code: {", ".join(commits)}{trained}.' if commits else ''


def blocks(*parts: str) -> str:
  """Parts of a page with blank lines between; those without text left out."""
  return '\n\n'.join(dict.fromkeys(part for part in parts if part))
