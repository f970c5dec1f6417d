"""The verdict on one screen for the terminal."""

from __future__ import annotations

from collections.abc import Callable
import textwrap
from typing import Any

from mansu_jax.report import words
from mansu_jax.report.sections import attacks
from mansu_jax.report.sections import audit
from mansu_jax.report.sections import properties

Record = dict[str, Any]

_WIDTH = 80
_NO_BREAK = '\u00a0'
_TEXT = 18  # Column at which a property's text starts.
_LEGEND = '  value [95 % interval], or value (bound that decides)'
_KEPT = {'retain': 'retained facts, new phrasings',
         'retain_heldout': 'held-out facts'}
_LABEL = 34  # Columns of a row's label.
_NONE = '-'  # A figure that was not measured, in the table.


def lines(record: Record) -> list[str]:
  """About 25 lines of at most 80 columns; lines with paths may be longer."""
  folder = record['config'].get('workdir') or '.'
  return [
      *_head(record), _LEGEND,
      *(line for letter, entry in record['properties'].items()
        for line in _property(record, letter, entry)),
      *_answered(record), *_avoided(record), *_perplexity(record),
      f'report: {folder.rstrip("/")}/report.html']


def _wrap(text: str, indent: int, first: int | None = None) -> list[str]:
  """Lines of at most 80 columns; `first` is the first line's indent."""
  wrapped = textwrap.wrap(
      text, _WIDTH, initial_indent=' ' * (indent if first is None else first),
      subsequent_indent=' ' * indent)
  return [line.replace(_NO_BREAK, ' ') for line in wrapped]


def _head(record: Record) -> list[str]:
  """The verdict and the models; in an audit, also their differences."""
  config, model = record['config'], record['model']
  state = words.verdict(record['verdict']['passed']).upper()
  if not audit.is_audit(record):
    return [f'{state}: {config["method"]} on'
            f' {model.get("name", config["model"])}, seed {config["seed"]}']
  audited, base = audit.names(record)
  differences = [audit.moved(record), *filter(None, [
      audit.beyond_rounding(record)]),
                 *(_survival(*item) for item in record['survival'].items())]
  return [f'{state}: audit, seed {config["seed"]}', f'  model {audited}',
          f'  base  {base}',
          *(line for text in differences for line in _wrap(text, 4, 2))]


def _survival(scheme: str, found: Record) -> str:
  changed, unchanged = (
      words.percent(found[k]) for k in ('changed_codes', 'moved_unchanged'))
  return (f'{scheme}: {changed} of weights changed code, {unchanged} moved but'
          ' kept their code')


def _property(record: Record, letter: str, entry: Record) -> list[str]:
  """A property's verdict and what it found, in plain words."""
  makers: dict[str, Callable[[Record, Record], list[str]]] = {
      'F': _forgotten, 'R': _cost, 'Q': _brought_back, 'S': _structure}
  state = words.verdict(entry.get('passed'))
  first, *rest = makers[letter](record, entry)
  out = _wrap(f'{letter} {state:12}  {first}', _TEXT, 2)
  for text in rest:
    out += _wrap(text, _TEXT)
  return out


def _or_reason(name: str, entry: Record, text: str) -> list[str]:
  """The name with the text if there is a value, then the record's reason."""
  reason = entry.get('reason')
  if entry.get('value') is None:
    return [f'{name}: not judged{f": {reason}" if reason else ""}']
  return [f'{name}: {text}', *filter(None, [reason])]


def _bound(entry: Record, side: str, sign: bool = False) -> str:
  """The value with the bound that decides: the interval for a failure."""
  if entry.get('passed') is False or entry.get(side) is None:
    return words.estimate(entry, sign=sign).replace(' ', _NO_BREAK)
  form = words.signed if sign else words.number
  bound = f'({side} bound {form(entry[side])})'.replace(' ', _NO_BREAK)
  return f'{form(entry["value"])} {bound}'


def _needs(comparison: str, entry: Record) -> str:
  """The condition, which does not break over lines."""
  threshold = entry.get('threshold')
  return '' if threshold is None else '; ' + (
      f'needs {comparison} {threshold:g}'.replace(' ', _NO_BREAK))


def _where(entry: Record) -> str:
  """The reading and the precision, in brackets."""
  parts = [properties.READINGS.get(entry.get('reading')),
           entry.get('precision')]
  return f'({", ".join(filter(None, parts))})'


def _forgotten(record: Record, entry: Record) -> list[str]:
  return [*_or_reason(
      'forgetting', entry, f'{_bound(entry, "lower")} of the knowledge is gone'
      f' by the worst reading {_where(entry)}{_needs(">=", entry)}'),
          *filter(None, [properties.untrained(record)])]


def _cost(record: Record, entry: Record) -> list[str]:
  del record
  facts = 'retained' if entry.get('split') == 'retain' else 'held-out'
  return _or_reason(
      'cost', entry, f'accuracy drop on {facts} facts'
      f' {_bound(entry, "upper", True)} {_where(entry)}{_needs("<=", entry)}')


def _brought_back(record: Record, entry: Record) -> list[str]:
  del record
  return _or_reason(
      'quantization', entry, f'{entry.get("scheme")} brings back'
      f' {_bound(entry, "upper", True)} of the knowledge{_needs("<=", entry)}')


def _structure(record: Record, entry: Record) -> list[str]:
  """The hidden share and the attacks, each with its reason."""
  attack = record.get('attack_verdict', {})
  reasons = [reason for reason in entry.get('reasons', ())
             if reason != attack.get('reason')]
  if entry.get('value') is not None:
    reasons.insert(0, f'{words.estimate(entry)} of the knowledge is hidden'
                   f' {_where(entry)}')
  return [f'structure: {"; ".join(reasons) or "not judged"}',
          attacks.brief(record)]


def _precisions(record: Record) -> list[str]:
  return ['fp', *record['config']['quant_schemes']]


def _answered(record: Record) -> list[str]:
  """Share of questions answered right, by reading and precision."""
  if not record['accuracy']:
    return [f'  answered right: {words.MISSING}, there are no questions']
  shown = _precisions(record)[:2]
  width = max(7 * len(shown), 11)
  heads = f' {"".join(f"{_short(p):>7}" for p in shown):>{width}}' * 3
  titles = ''.join(
      f' {title:>{width}}' for title in ('base', 'unlearned', 'by guessing'))
  out = [f'  {"share answered right":{_LABEL}}{titles[1:]}',
         f'  {"":{_LABEL}}{heads[1:]}']
  for name, entry in record.get('forgetting', {}).items():
    if name == properties.SHOWN_ONLY:  # What is guessed was not measured.
      entry = {k: v for k, v in entry.items() if k != 'ignorance'}
    out.append(_row(properties.READINGS.get(name, name), entry, shown))
  for split, label in _KEPT.items():
    if split in record['accuracy']:
      out.append(_row(label, record['accuracy'][split], shown))
  return out


def _short(precision: str) -> str:
  """A name that fits its column of the table."""
  return precision if len(precision) < 7 else f'{precision[:5]}.'


def _row(label: str, entry: Record, shown: list[str]) -> str:
  """Both models, and the unlearned one if it guesses, where that is known."""
  width = max(7 * len(shown), 11)
  figures = [[(entry[model].get(p) or {}).get('value') for p in shown]
             for model in ('base', 'unlearned')]
  if 'ignorance' in entry:
    figures.append([entry['ignorance']['unlearned'].get(p) for p in shown])
  cells = (''.join(f'{_cell(x):>7}' for x in found) for found in figures)
  return f'    {label:{_LABEL - 2}}' + ' '.join(
      f'{cell:>{width}}' for cell in cells)


def _cell(value: float | None) -> str:
  return _NONE if value is None else words.number(value, 2)


def _avoided(record: Record) -> list[str]:
  """The readings in which right answers are rarer than by ignorance."""
  found = [
      f'{properties.READINGS.get(name, name)} ({words.listing(list(avoided))})'
      for name, entry in record.get('forgetting', {}).items()
      if (avoided := entry.get('avoided')) and name != properties.SHOWN_ONLY]
  return _wrap(
      'avoids right answers, which reveals them:'
      f' {"; ".join(found)}', 4, 2) if found else []


def _perplexity(record: Record) -> list[str]:
  """The cost in perplexity of text that was not trained on."""
  found = record.get('perplexity', {})
  parts = []
  for p in _precisions(record)[:2]:
    share = words.ratio(*(found.get(m, {}).get(p)
                          for m in ('unlearned', 'base')))
    if share is not None:
      parts.append(f'{100 * (share - 1):+.1f} % ({p})')
  return [f'  perplexity of other text, against the base:'
          f' {", ".join(parts)}'] if parts else []
