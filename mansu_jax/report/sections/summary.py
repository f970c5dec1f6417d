"""The verdict in a few lines for the terminal."""

from __future__ import annotations

import textwrap
from typing import Any

from mansu_jax.report import words
from mansu_jax.report.sections import audit
from mansu_jax.report.sections import properties

Record = dict[str, Any]

_WIDTH = 80
_NO_BREAK = '\u00a0'
_TEXT = 18  # Column at which a property's text starts.
_COMPARISONS = {'F': '>=', 'R': '<=', 'Q': '<='}
_LEGEND = ('  value [95 % interval]; F forgetting, R retain, Q quantization,'
           ' S structure')


def lines(record: Record) -> list[str]:
  """About 15 lines of at most 80 columns; lines with paths may be longer."""
  folder = record['config'].get('workdir') or '.'
  return [
      *_head(record), _LEGEND,
      *(line for letter, entry in record['properties'].items()
        for line in _property(record, letter, entry)),
      *_accuracies(record),
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
  """A property's verdict with its value and the condition to pass."""
  state = words.verdict(entry.get('passed'))
  text = properties.headline(letter, entry)
  if entry.get('value') is None and entry.get('reason'):
    text = entry['reason']
  elif letter in _COMPARISONS and entry.get('threshold') is not None:
    needs = f'needs {_COMPARISONS[letter]} {entry["threshold"]:g}'
    text = (f'{properties.bound(letter, entry)},'
            f' {needs.replace(" ", _NO_BREAK)}')
  out = _wrap(f'{letter} {state:12}  {text}', _TEXT, 2)
  if worst := entry.get('worst_form'):
    out += _wrap(f'worst phrasing {worst["form"]}: phi'
                 f' {words.estimate(worst)}', 6, 4)
  if letter == 'Q' and entry.get('value') is not None:
    out += _wrap(_gap(record, entry), 6, 4)
  for unmet in properties.unmet_checks(entry):
    out += _wrap(unmet, 6, 4)
  return out


def _gap(record: Record, entry: Record) -> str:
  """The smallest detectable gap, and the gap of the base."""
  base = record['ptq_gap_base'].get(entry['scheme'])
  adjusted = record['ptq_gap_adjusted'].get(entry['scheme'])
  return (f'smallest detectable {words.number(entry["smallest_detectable"])};'
          f' base {words.signed((base or {}).get("value"))},'
          f' adjusted {words.estimate(adjusted, 3, True)}')


def _accuracies(record: Record) -> list[str]:
  """One line per split: fp and the leading quantizer, base -> unlearned."""
  if audit.is_audit(record) and not record['accuracy']:
    return [f'  accuracy {words.MISSING}: there are no questions']
  scheme = record['config']['quant_schemes'][0]
  out = [f'  {"accuracy, base -> unlearned":30}{"fp":16}{scheme}']
  for split in words.SPLITS:
    found = record['accuracy'].get(split)
    cells = [words.MISSING] if found is None else [
        _change(found, precision) for precision in ('fp', scheme)]
    out.append(f'    {split:28}{_columns(cells, 16)}')
  return out + _others(record)


def _others(record: Record) -> list[str]:
  """One line per further quantizer."""
  schemes = record['config']['quant_schemes'][1:]
  if not schemes or not record['ptq_gap']:
    return []
  width = max(map(len, schemes)) + 2
  out = ['  other quantizers: gap (upper bound); accuracy on forget_far,'
         ' retain_heldout']
  for scheme in schemes:
    gap = record['ptq_gap'][scheme]
    cells = [f'{words.signed(gap["value"])} ({words.signed(gap["upper"])})']
    for split in ('forget_far', 'retain_heldout'):
      found = record['accuracy'].get(split)
      cells.append(words.MISSING if found is None else _change(found, scheme))
    out.append(f'    {scheme:{width}}{_columns(cells, 18)}')
  return out


def _columns(cells: list[str], width: int) -> str:
  return ''.join(f'{cell:{width}}' for cell in cells).rstrip()


def _change(split: Record, precision: str) -> str:
  """`base -> unlearned` accuracy."""
  return ' -> '.join(words.number((split[m].get(precision) or {}).get('value'))
                     for m in ('base', 'unlearned'))
