"""Renames the keys of older records."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]

_RECORD = {'crossed_prompts': 'swapped_prompts'}
_CIRCUIT = {'robustness': 'stability', 'picture': 'summary'}
_SUMMARY = {'places': 'token_roles'}


def rename(record: Record) -> Record:
  """A copy of the record under today's keys; today's records are unchanged."""
  record = _renamed(record, _RECORD)
  if circuit := record.get('circuit'):
    circuit = _renamed(circuit, _CIRCUIT)
    if 'summary' in circuit:
      circuit['summary'] = _renamed(circuit['summary'], _SUMMARY)
    record['circuit'] = circuit
  return record


def _renamed(entry: Record, names: dict[str, str]) -> Record:
  return {names.get(key, key): value for key, value in entry.items()}
