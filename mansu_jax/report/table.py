"""Compares runs: `python -m mansu_jax.report.table [NAME=]DIR ...`.

Prints Markdown tables of the records in workdirs. Each row is one setting
under one quantizer: runs that differ only in their seed share a row, as mean
[min, max]. A row's name is NAME, or the flags that not all runs share. The
first table compares forgetting and its cost; the second compares structure:
hidden share, attacks, CAD and readability, where they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import pathlib
import sys
from typing import Any, NamedTuple

from absl import app

from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import words
from mansu_jax.report.sections import properties
from mansu_jax.report.sections import provenance

Record = dict[str, Any]

_READINGS = ('choice', 'choice_unseen', 'generation_few_shot', 'reverse')
HELDOUT = 'retain_heldout'  # Split.
_LABELS = 2  # Columns that hold text.
# A model that answers less than this share of what the base did has collapsed.
_COLLAPSED = 0.5
_CAPTION = (
    'Mean over seeds [minimum, maximum]. Readings (choice to reverse) and'
    ' held-out facts: share of questions answered right; fp is full precision.'
    ' Known: share of the'
    ' base\'s knowledge that is left in the worst reading. Brought back: known'
    ' when quantized less known in full precision, in the choice readings'
    ' together; of one seed with its 95 % interval. Perplexity ratio: unlearned'
    ' divided by base. Weights moved and codes changed: shares of all weights.')
_STRUCTURE_CAPTION = (
    'Mean over seeds [minimum, maximum]; hidden share and worst attack of one'
    ' seed with their 95 % intervals. Hidden share: share of the base\'s'
    ' knowledge that the unlearned model answers if one block is the base\'s,'
    ' beyond what it answers itself.'
    ' Worst attack: gain on untaught forget facts less that on facts never'
    ' known. CAD: 0 unchanged, 1 gone. Readability: share of the base\'s; 0 is'
    ' guessing. S: verdicts on structural erasure.')


def compare(
    records: Sequence[Record], names: Sequence[str] | None = None) -> str:
  """`tables` in Markdown."""
  return '\n\n'.join(map(markdown.table, tables(records, names))) + '\n'


def tables(
    records: Sequence[Record], names: Sequence[str] | None = None
) -> list[document.Table]:
  """Tables that compare runs.

  Args:
    records: Records as in `record.json`.
    names: Row name of each record; None or '' for its flags.

  Raises:
    ValueError: There are no records, or runs of one name differ in more than
      the seed.
  """
  if not records:
    raise ValueError('There are no records to compare; give the workdirs of at'
                     ' least one finished run.')
  groups = _grouped(records, names or [''] * len(records))
  rows = [_Row(_labelled(name, group), scheme, group) for name, group in groups
          for scheme in _schemes(group[0])]
  forgetting = _table(rows, _COLUMNS, _CAPTION, _base_rows(records))
  return [forgetting] + [
      table for table in (_table(rows, _STRUCTURE, _STRUCTURE_CAPTION),)
      if len(table.columns) > _LABELS + 2]  # More than the seeds and S.


def collapsed(record: Record) -> bool:
  """Whether the model lost half of what it should keep, at any precision."""
  for split in (HELDOUT, 'retain'):
    if split in record['accuracy']:
      before, after = (
          record['accuracy'][split][model] for model in ('base', 'unlearned'))
      return any(after[p]['value'] < _COLLAPSED * before[p]['value']
                 for p in before)
  return False


def _labelled(name: str, group: Sequence[Record]) -> str:
  """The name of a row, with how many of its runs collapsed."""
  count = sum(map(collapsed, group))
  if not count:
    return name
  part = f'{count} of {len(group)} ' if count < len(group) else ''
  return f'{name}, {part}collapsed'


class _Row(NamedTuple):
  """Runs of one setting under one quantizer; or their base."""

  name: str
  scheme: str
  group: Sequence[Record]
  model: str = 'unlearned'


class _Column(NamedTuple):
  """A head, and the cell of a row."""

  head: str
  cell: Callable[[_Row], str]


def _table(
    rows: Sequence[_Row], columns: Sequence[_Column], caption: str,
    base: Sequence[_Row] = ()) -> document.Table:
  """Without the columns that no run has measured."""
  columns = [column for column in columns if any(
      column.cell(row) != words.MISSING for row in rows)]
  return document.Table(
      ('run', 'quantizer', 'seeds', *(column.head for column in columns)),
      tuple((row.name, row.scheme, str(len(row.group)), *(
          column.cell(row) for column in columns)) for row in (*base, *rows)),
      labels=_LABELS, caption=caption)


def _base_rows(records: Sequence[Record]) -> list[_Row]:
  """The base under each quantizer; [] where the runs' bases differ.

  The base does not depend on a run's setting, so each seed counts once.
  """
  if len({_measured_on(record) for record in records}) > 1:
    return []
  group = list({r['config']['seed']: r for r in records}.values())
  return [_Row('base', scheme, group, 'base')
          for scheme in _schemes(group[0])]


def _measured_on(record: Record) -> str:
  """A key that records with the same base figures share."""
  return json.dumps([record['model'].get('sha256'), record['data']['sha256'],
                     _schemes(record)], sort_keys=True)


def _identity(record: Record) -> frozenset[str]:
  """The flags of a run except its seed."""
  return frozenset(flag for flag in provenance.flags(record['config'])
                   if not flag.startswith('--seed='))


def _grouped(
    records: Sequence[Record], names: Sequence[str]
) -> list[tuple[str, list[Record]]]:
  """Names of the settings with their records, in order of appearance."""
  common = frozenset.intersection(*map(_identity, records))
  groups: dict[Any, list[Record]] = {}
  for record, name in zip(records, names):
    groups.setdefault(name or _identity(record), []).append(record)
  out = []
  for key, group in groups.items():
    if len(settings := {_identity(record) for record in group}) > 1:
      differing = sorted(frozenset.union(*settings)
                         - frozenset.intersection(*settings))
      raise ValueError(
          f'The runs named {key!r} differ in more than the seed:'
          f' {" ".join(differing)}. Give each setting a name of its own.')
    flags = ' '.join(sorted(_identity(group[0]) - common))
    name = key if isinstance(key, str) else flags
    out.append((name or _kind(group[0]), group))
  return out


def _kind(record: Record) -> str:
  """The name of a run that no flag distinguishes from the others."""
  config = record['config']
  return 'audit' if config['mode'] == 'audit' else config['method']


def _schemes(record: Record) -> list[str]:
  return record['config']['quant_schemes']


def _over_seeds(
    values: Sequence[float | None], form: Callable[[float], str]) -> str:
  """`mean [min, max]` of the values that were measured."""
  known = [v for v in values if v is not None]
  if not known:
    return words.MISSING
  text, low, high = (
      form(v) for v in (sum(known) / len(known), min(known), max(known)))
  if low != high:
    text += f' [{low}, {high}]'
  if len(known) < len(values):
    text += f' ({len(known)} of {len(values)} runs)'
  return text


def _estimates(entries: Sequence[Record], sign: bool = False) -> str:
  """The value with its interval of one run, else `_over_seeds`."""
  if len(entries) == 1:
    return words.estimate(entries[0], sign=sign)
  return _over_seeds([entry.get('value') for entry in entries],
                     words.signed if sign else words.number)


def _both(row: _Row, cell: Callable[[str], str]) -> str:
  """`fp / quantized` of a cell at a precision."""
  parts = [cell(precision) for precision in ('fp', row.scheme)]
  return words.MISSING if set(parts) == {words.MISSING} else ' / '.join(parts)


def _accuracy(row: _Row, find: Callable[[Record], Record]) -> str:
  """Accuracy of the row's model in a part of the record."""
  return _both(row, lambda precision: _over_seeds(
      [find(r).get(row.model, {}).get(precision, {}).get('value')
       for r in row.group], words.number))


def _reading(name: str) -> _Column:
  return _Column(f'{name}, fp / quantized', lambda row: _accuracy(
      row, lambda r: r.get('forgetting', {}).get(name, {})))


def known(record: Record, precision: str) -> float | None:
  """Share of the base's knowledge that is left in the worst reading."""
  found = [entry['known'].get(precision, {}).get('value')
           for name, entry in record.get('forgetting', {}).items()
           if properties.decides(record, name)]
  return max((v for v in found if v is not None), default=None)


def _known(row: _Row) -> str:
  return _both(row, lambda p: _over_seeds(
      [known(r, p) for r in row.group], words.number))


def _of_edit(cell: Callable[[_Row], str], base: str = '–') -> Callable:
  """A cell of the unlearned model alone, and what the base has instead."""
  return lambda row: base if row.model == 'base' else cell(row)


def _brought_back(row: _Row) -> str:
  return _estimates([
      r['properties']['Q'].get('by_scheme', {}).get(row.scheme, {})
      for r in row.group], sign=True)


def _perplexity(row: _Row) -> str:
  ratio = lambda record, precision: words.ratio(*(
      record['perplexity'].get(m, {}).get(precision)
      for m in (row.model, 'base')))
  return _both(row, lambda p: _over_seeds(
      [ratio(r, p) for r in row.group], words.number))


def _survival(key: str) -> Callable[[_Row], str]:
  return _of_edit(lambda row: _over_seeds(
      [r['survival'].get(row.scheme, {}).get(key) for r in row.group],
      words.percent), '0 %')


def _time(row: _Row) -> str:
  return _over_seeds([sum(s['seconds'] for s in r['stages'])
                      for r in row.group], words.duration)


_COLUMNS = (
    *map(_reading, _READINGS),
    _Column('known in the worst reading, fp / quantized', _of_edit(_known)),
    _Column('brought back', _of_edit(_brought_back)),
    _Column('held-out facts, fp / quantized', lambda row: _accuracy(
        row, lambda r: r['accuracy'].get(HELDOUT, {}))),
    _Column('perplexity ratio, fp / quantized', _perplexity),
    _Column('weights moved', _survival('moved')),
    _Column('codes changed', _survival('changed_codes')),
    _Column('time', _of_edit(_time)))


def _hidden(row: _Row) -> str:
  return _both(row, lambda p: _estimates([
      r.get('structure', {}).get('hidden_share', {}).get(p, {})
      for r in row.group]))


def _attacked(row: _Row) -> str:
  """The worst comparison and its attack; the gain where guessing is unknown."""
  found = [r.get('attack_verdict', {}) for r in row.group]
  text = _estimates([one.get('difference') or one.get('gain') or {}
                     for one in found], sign=True)
  names = dict.fromkeys(
      f'{one["attack"]}, {one["precision"]}'
      f'{"" if one["difference"] else ", gain alone"}'
      for one in found if 'attack' in one)
  return f'{text} ({"; ".join(names)})' if names else text


def _at(record: Record, key: str, precision: str) -> Record:
  """CAD or readability at a precision; {} where it was not measured."""
  found = record.get(key) or {}
  if precision != 'fp':
    found = found.get('by_precision', {}).get(precision, {})
  return found if 'value' in found else {}


def _measure(key: str) -> Callable[[_Row], str]:
  return lambda row: _both(row, lambda p: _over_seeds(
      [_at(r, key, p).get('value') for r in row.group], words.number))


def _random_circuits(row: _Row) -> str:
  return _both(row, lambda p: _over_seeds(
      [_at(r, 'cad', p).get('nulls', {}).get('random_circuits', {}).get('mean')
       for r in row.group], words.number))


def _verdicts(row: _Row) -> str:
  return ', '.join(sorted({
      words.verdict(r['properties']['S']['passed']) for r in row.group}))


_STRUCTURE = (
    _Column('hidden share, fp / quantized', _hidden),
    _Column('worst attack', _attacked),
    _Column('CAD, fp / quantized', _measure('cad')),
    _Column('CAD of random circuits, fp / quantized', _random_circuits),
    _Column('readability, fp / quantized', _measure('readability')),
    _Column('S', _verdicts))


def read(folder: str) -> Record:
  """The record of a workdir.

  Raises:
    ValueError: The workdir has no record, or not one of an unlearning run or
      an audit.
  """
  path = pathlib.Path(folder) / 'record.json'
  if not path.is_file():
    raise ValueError(f'There is no record.json in {folder!r}; give the workdir'
                     ' of a finished run.')
  record = json.loads(path.read_text(encoding='utf-8'))
  if 'accuracy' not in record or 'config' not in record:
    raise ValueError(f'{path} has no accuracy or no config; give the workdir of'
                     ' an unlearning run or an audit.')
  return record


def main(argv: list[str]) -> int:
  """Prints the tables."""
  parts = [argument.rpartition('=') for argument in argv[1:]]
  try:
    table = compare([read(folder) for _, _, folder in parts],
                    [name for name, _, _ in parts])
  except ValueError as error:
    print(f'mansu_jax.report.table: {error}', file=sys.stderr)
    return 2
  print(table, end='')
  return 0


if __name__ == '__main__':
  app.run(main)
