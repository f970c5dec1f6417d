"""Compares runs: `python -m mansu_jax.report.table [NAME=]DIR ...`.

Prints Markdown tables of the records in workdirs. Each row is one setting:
runs that differ only in their seed share a row, as mean [min, max]. A row's
name is NAME, or the flags that not all runs share. The first table compares
accuracy, PTQ gap and perplexity. The second compares CAD, AS-NC and
readability where they were measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import pathlib
import sys
from typing import Any

from absl import app

from mansu_jax.report import document
from mansu_jax.report import markdown
from mansu_jax.report import words
from mansu_jax.report.sections import provenance

Record = dict[str, Any]

_SPLITS = ('forget_paraphrase', 'forget_far', 'retain', 'retain_heldout')
_COLUMNS = (
    'run', 'quantizer', 'seeds', *(f'{s}, fp / quantized' for s in _SPLITS),
    'PTQ gap', 'PTQ gap of the base', 'base-adjusted gap',
    'perplexity ratio, fp / quantized', 'weights moved', 'time')
_STRUCTURE = (
    'run', 'seeds', 'CAD, fp / quantized', 'CAD of the suppression control',
    'CAD of random circuits', 'AS-NC, fp / quantized',
    'readability, fp / quantized', 'readability of the suppression control',
    'readability of the quantized base', 'readability by guessing, 95 % level',
    'best minus last layer, fp / quantized', 'S')
_CAPTION = (
    'Mean over seeds [minimum, maximum]. Accuracy and gaps are shares of'
    ' questions; fp is full precision. PTQ gap: accuracy when quantized minus'
    ' full precision, on forget_paraphrase and forget_far. Perplexity ratio:'
    ' unlearned divided by base.')
_STRUCTURE_CAPTION = (
    'Mean over seeds [minimum, maximum]. CAD and AS-NC: 0 unchanged, 1 gone.'
    ' Readability: share of the base\'s; 0 is guessing. Best minus last layer:'
    ' share of forget questions that the best layer\'s lens answers, minus that'
    ' of the last layer. S: verdicts on structural erasure.')


def compare(
    records: Sequence[Record], names: Sequence[str] | None = None) -> str:
  """Markdown tables that compare runs.

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
  rows = [(name, *_cells(group)) for name, group in groups]
  if len({_measured_on(record) for record in records}) == 1:
    rows.insert(0, ('base', *_base_cells(records)))
  tables = [document.Table(
      _COLUMNS, tuple(rows), labels=2, caption=_CAPTION)]
  if any(record['cad'] or _readable(record) for record in records):
    tables.append(document.Table(_STRUCTURE, tuple(
        (name, *_structure_cells(group)) for name, group in groups),
                                 caption=_STRUCTURE_CAPTION))
  return '\n\n'.join(map(markdown.table, tables)) + '\n'


def _measured_on(record: Record) -> str:
  """A key that records with the same base figures share."""
  return json.dumps([record['model'].get('sha256'), record['data']['sha256'],
                     _scheme(record)], sort_keys=True)


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


def _scheme(record: Record) -> str:
  return record['config']['quant_schemes'][0]


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


def _both(group, get, form) -> str:
  """`fp / quantized` values of `get(record, precision)`."""
  parts = [
      _over_seeds([get(r, 'fp' if fp else _scheme(r)) for r in group], form)
      for fp in (True, False)]
  return words.MISSING if set(parts) == {words.MISSING} else ' / '.join(parts)


def _accuracies(group: Sequence[Record], model: str) -> list[str]:
  def value(split):
    return lambda record, precision: record['accuracy'].get(split, {}).get(
        model, {}).get(precision, {}).get('value')

  return [_both(group, value(split), words.number) for split in _SPLITS]


def _gap(group: Sequence[Record], key: str) -> str:
  return _over_seeds(
      [r[key].get(_scheme(r), {}).get('value') for r in group], words.signed)


def _cells(group: Sequence[Record]) -> list[str]:
  perplexity = lambda record, precision: words.ratio(*(
      record['perplexity'].get(m, {}).get(precision)
      for m in ('unlearned', 'base')))
  moved = [r['survival'].get(_scheme(r), {}).get('moved') for r in group]
  seconds = [sum(s['seconds'] for s in r['stages']) for r in group]
  return [
      _scheme(group[0]), str(len(group)), *_accuracies(group, 'unlearned'),
      *(_gap(group, k) for k in (
          'ptq_gap', 'ptq_gap_base', 'ptq_gap_adjusted')),
      _both(group, perplexity, words.number),
      _over_seeds(moved, words.percent), _over_seeds(seconds, words.duration)]


def _readable(record: Record) -> Record:
  """Readability; {} where it was not measured."""
  found = record.get('readability') or {}
  return found if 'value' in found else {}


def _structure_cells(group: Sequence[Record]) -> list[str]:
  """CAD, AS-NC and readability with their nulls."""
  measures = {
      'cad': lambda r: r['cad'] or {}, 'as_nc': lambda r: r['as_nc'] or {},
      'readability': _readable}

  def at(record, key, precision):
    found = measures[key](record)
    return found if precision == 'fp' else found.get(
        'by_precision', {}).get(precision, {})

  value = lambda key: _both(
      group, lambda r, p: at(r, key, p).get('value'), words.number)
  null = lambda key, name, field: _over_seeds(
      [measures[key](r).get('nulls', {}).get(name, {}).get(field)
       for r in group], words.number)
  passed = [r['properties']['S']['passed'] for r in group]
  verdicts = {True: 'passed', False: 'failed'}
  return [
      str(len(group)), value('cad'), null('cad', 'suppression', 'value'),
      null('cad', 'random_circuits', 'mean'), value('as_nc'),
      value('readability'), null('readability', 'suppression', 'value'),
      null('readability', 'base_quantized', 'value'),
      null('readability', 'guessing', 'level_95'),
      _both(group, lambda r, p: at(r, 'readability', p).get(
          'hidden', {}).get('value'), words.number),
      ', '.join(sorted({verdicts.get(p, str(p)) for p in passed}))]


def _base_cells(records: Sequence[Record]) -> list[str]:
  """The row of the base model.

  The base does not depend on a run's setting, so each seed counts once.
  """
  group = list({r['config']['seed']: r for r in records}.values())
  own = _gap(group, 'ptq_gap_base')
  return [_scheme(group[0]), str(len(group)), *_accuracies(group, 'base'),
          own, own, '–', '1 / 1', '0 %', '–']


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
