"""The verdict on one screen for the terminal."""

from __future__ import annotations

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
_COMPARISONS = {'F': '>=', 'R': '<=', 'Q': '<='}
_LEGEND = ('  value [95 % interval]; F forgetting, R retain, Q quantization,'
           ' S structure')
_KEPT = {'retain': 'retained facts, new phrasings',
         'retain_heldout': 'held-out facts'}
_LABEL = 46  # Columns of a row's label and of the ignorant model.


def lines(record: Record) -> list[str]:
  """About 25 lines of at most 80 columns; lines with paths may be longer."""
  folder = record['config'].get('workdir') or '.'
  return [
      *_head(record), _LEGEND,
      *(line for letter, entry in record['properties'].items()
        for line in _property(letter, entry)),
      *_answered(record), *_perplexity(record), *_attacks(record),
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


def _property(letter: str, entry: Record) -> list[str]:
  """A property's verdict with its value and the condition to pass."""
  state = words.verdict(entry.get('passed'))
  text = properties.headline(letter, entry)
  if entry.get('value') is None and entry.get('reason'):
    text = entry['reason']
  elif letter in _COMPARISONS and entry.get('threshold') is not None:
    needs = f'needs {_COMPARISONS[letter]} {entry["threshold"]:g}'
    text = (f'{properties.bound(letter, entry)};'
            f' {needs.replace(" ", _NO_BREAK)}')
  out = _wrap(f'{letter} {state:12}  {text}', _TEXT, 2)
  for reason in entry.get('reasons', ()):
    out += _wrap(reason, 6, 4)
  return out


def _precisions(record: Record) -> list[str]:
  return ['fp', *record['config']['quant_schemes']]


def _answered(record: Record) -> list[str]:
  """Share of questions answered right, by reading and precision."""
  if audit.is_audit(record) and not record['accuracy']:
    return [f'  answered right {words.MISSING}: there are no questions']
  shown = _precisions(record)[:2]
  heads = ''.join(f'{p:>7}' for p in shown)
  out = [f'  {"share answered right":33}{"ignorant":>11}   base'
         f'{"":{max(0, 7 * len(shown) - 7)}}   unlearned',
         f'  {"":44}{heads}   {heads}']
  for name, entry in record.get('forgetting', {}).items():
    out.append(_row(properties.READINGS.get(name, name), entry, shown,
                    words.number(entry['ignorance'], 2)))
  for split, label in _KEPT.items():
    if split in record['accuracy']:
      out.append(_row(label, record['accuracy'][split], shown, ''))
  return out


def _row(label: str, entry: Record, shown: list[str], ignorant: str) -> str:
  cells = [''.join(
      f'{words.number((entry[m].get(p) or {}).get("value"), 2):>7}'
      for p in shown) for m in ('base', 'unlearned')]
  return f'    {label:{_LABEL - 6}}{ignorant:>4}{cells[0]}   {cells[1]}'


def _perplexity(record: Record) -> list[str]:
  """The cost in perplexity of text that was not trained on."""
  found = record.get('perplexity', {})
  parts = []
  for p in _precisions(record)[:2]:
    share = words.ratio(*(found.get(m, {}).get(p)
                          for m in ('unlearned', 'base')))
    if share is not None:
      parts.append(f'{100 * (share - 1):+.1f} % ({p})')
  return [f'  perplexity of other text: {", ".join(parts)}'] if parts else []


def _attacks(record: Record) -> list[str]:
  """What attacks bring back."""
  if not record.get('attacks'):
    return []
  return _wrap(f'attack: {attacks.sentence(record)}', 4, 2)
