"""Renames the keys of older records.

Records without `forgetting` judged their properties by other rules. Their
entries get a key `former` with the words for what they measure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mansu_jax.report import words

Record = dict[str, Any]

_RECORD = {'crossed_prompts': 'swapped_prompts'}
_CIRCUIT = {'robustness': 'stability', 'picture': 'summary'}
_SUMMARY = {'places': 'token_roles'}
_MEASURES = {'cad': 'CAD', 'as_nc': 'AS-NC'}
_REMARK = (
    'A former version of mansu_jax judged this record, by other rules than'
    ' today\'s: F, R and Q compare accuracies of multiple-choice questions with'
    ' chance, with the base and with full precision, and S counts checks of CAD'
    ' and AS-NC, which decide nothing today. Run it again for the readings, the'
    ' hidden share and the attacks.')
_FORMER = {
    'F': {'measure': 'phi', 'rule': 'passes if the one-sided lower 95 % bound'
          ' is at or above', 'meaning':
          'phi is the share of the way from the base\'s accuracy on forget'
          ' questions to chance: 1 is chance, 0 is nothing forgotten.'},
    'R': {'measure': 'accuracy drop', 'rule': 'passes if the one-sided upper'
          ' 95 % bound is at or below', 'meaning':
          'Accuracy lost on retained and held-out facts; a negative drop is a'
          ' gain.'},
    'Q': {'measure': 'PTQ gap', 'rule': 'passes if, under every quantizer, the'
          ' one-sided upper 95 % bound is at or below', 'meaning':
          'Accuracy of the quantized model on forget questions, less that in'
          ' full precision.'},
    'S': {'measure': 'CAD', 'rule': 'passes if all checks pass; highest level'
          ' of a null', 'meaning':
          'CAD and AS-NC against their nulls. They fade wherever the answer'
          ' fades, so they show no erasure.'}}


def rename(record: Record) -> Record:
  """A copy of the record under today's keys; today's records are unchanged."""
  record = _renamed(record, _RECORD)
  if circuit := record.get('circuit'):
    circuit = _renamed(circuit, _CIRCUIT)
    if 'summary' in circuit:
      circuit['summary'] = _renamed(circuit['summary'], _SUMMARY)
    record['circuit'] = circuit
  if 'properties' in record and 'forgetting' not in record:
    record['properties'] = {
        letter: _MAKERS[letter](entry, record) | {
            'former': _FORMER[letter] | {'remark': _REMARK}}
        for letter, entry in record['properties'].items()}
  return record


def _renamed(entry: Record, names: dict[str, str]) -> Record:
  return {names.get(key, key): value for key, value in entry.items()}


def _forgotten(entry: Record, record: Record) -> Record:
  """phi by precision was that of the choice; one phrasing could fail it."""
  del record
  entry = dict(entry)
  if found := entry.pop('by_precision', None):
    entry['by_reading'] = {'choice': found}
  if worst := entry.pop('worst_form', None):
    entry['reasons'] = [
        f'the worst phrasing {worst["form"]} has phi {words.estimate(worst)}']
  return entry


def _brought_back(entry: Record, record: Record) -> Record:
  """What each quantizer brought back was the PTQ gap."""
  return entry | {'by_scheme': record.get('ptq_gap', {})}


def _structure(entry: Record, record: Record) -> Record:
  """Checks of CAD and AS-NC, in words."""
  del record
  found = {'full precision': entry} | entry.get('by_precision', {})
  reasons = [text for precision, one in found.items()
             for text in _checks(precision, one.get('checks', {}))]
  return entry | ({'reasons': reasons} if reasons else {})


def _checks(precision: str, checks: Record) -> list[str]:
  """How many checks passed at a precision, and the names of the others."""
  if not checks:
    return []
  by_state: dict[str, list[str]] = {}
  for name, passed in checks.items():
    by_state.setdefault(words.verdict(passed), []).append(_name(name))
  passed = by_state.pop('passed', [])
  others = ''.join(f', {state}: {words.listing(names)}'
                   for state, names in by_state.items())
  return [f'{precision}: {len(passed)} of {len(checks)} checks passed{others}']


def _name(check: str) -> str:
  """`CAD above random circuits` for `cad_above_random_circuits`."""
  measure = next(
      (key for key in _MEASURES if check.startswith(f'{key}_')), '')
  name, rest = _MEASURES.get(measure, ''), check.removeprefix(measure)
  return f'{name}{rest.replace("_", " ")}'


_MAKERS: dict[str, Callable[[Record, Record], Record]] = {
    'F': _forgotten, 'R': lambda entry, record: entry, 'Q': _brought_back,
    'S': _structure}
