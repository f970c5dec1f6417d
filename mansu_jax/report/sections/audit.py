"""The models that an audit compared, and the missing measures."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.sections import movement
from mansu_jax.report.sections import properties

Record = dict[str, Any]

_FLOATS = ('float32', 'bfloat16', 'float16')
_LARGE = 0.2  # |d| / |base|; the shipped experiments stay below 0.1.
# Split -> the data that it is made from.
_SOURCES = {
    'forget': 'train questions in --data_forget',
    'forget_paraphrase': 'near questions in --data_forget',
    'forget_far': 'far questions in --data_forget',
    'retain': 'near or far questions in --data_retain',
    'retain_heldout': 'questions in --data_heldout',
}
# Reading of forgetting -> the data that it is made from.
_READINGS = {
    'choice_unseen': 'near or far questions of the reading choice_unseen in'
                     ' --data_forget',
    'generation': 'near or far questions in --data_forget, and'
                  ' --eval_recall_questions above 0',
    'generation_few_shot': 'as for generated answers, with other facts of the'
                           ' same relation as examples',
    'reverse': 'near or far questions of the reading reverse in --data_forget'}


def is_audit(record: Record) -> bool:
  """Whether the record is from `--mode=audit`."""
  return 'pair' in record


def names(record: Record) -> tuple[str, str]:
  """Names of the audited model and of its base."""
  return record['pair']['name'], record['model']['name']


def title(record: Record) -> str:
  """Title of the report."""
  model, base = names(record)
  state = words.verdict(record['verdict']['passed'])
  return f'Audit of {model} against {base}: {state}'


def compared(record: Record) -> document.Section:
  """The two models, their storage types, and how far they differ."""
  (model, base), pair = names(record), record['pair']
  sentences = [
      f'The audit compares {model} (stored in {pair["stored_as"]}) with its'
      f' base {base} (stored in {pair["base_stored_as"]}), both converted to'
      f' {pair["compared_as"]}.',
      f'{moved(record)}.',
      'Similar weights show that one model derives from the other. They cannot'
      ' exclude further training in between.',
      *_doubts(record)]
  return document.Section(
      'What was compared', (document.Text(' '.join(sentences)),))


def _doubts(record: Record) -> Iterator[str]:
  """Reasons why the two models may differ by more than an edit."""
  pair = record['pair']
  if (record['movement']['total']['relative'] or 0) > _LARGE:
    yield ('This difference is large for an edit: check that this is the'
           ' right base.')
  if rest := beyond_rounding(record):
    yield f'{rest}; this rounding alone explains the other differences.'
  if pair['stored_as'] not in _FLOATS:
    yield ('The audited file is itself quantized, so its weights also differ by'
           ' that rounding. Survival and the shares of moved weights include'
           ' it.')


def moved(record: Record) -> str:
  """The share of weights that moved, and the layers, in words."""
  found = record['movement']
  layers = movement.layers(found['layers'])
  where = (f'none of {len(found["layers"])} layers'
           if layers is None else f'layers {layers}')
  return (f'{words.percent(found["total"]["moved"])} of all weights moved,'
          f' in {where}; |d| / |base|'
          f' {words.significant(found["total"]["relative"])}')


def beyond_rounding(record: Record) -> str:
  """The share that moved by more than the base's rounding; '' if not known."""
  share = record['pair'].get('moved_beyond_rounding')
  return '' if share is None else (
      f'{words.percent(share)} moved by more than the base\'s rounding to'
      f' {record["pair"]["base_stored_as"]}')


def not_measured(record: Record) -> list[document.Section]:
  """The missing measures and the data they need; [] if none is missing."""
  rows = tuple(_missing(record))
  if not rows:
    return []
  return [document.Section('What was not measured', (document.Table(
      ('not measured', 'missing data, or reason'), rows, labels=2,
      caption='Measures that the data of this audit do not allow. Properties'
      ' that need them are inconclusive.'),))]


def _missing(record: Record) -> Iterator[tuple[str, str]]:
  for split in words.REQUIRED_SPLITS:
    if split not in record['accuracy']:
      yield f'accuracy on {split}', _SOURCES[split]
  if 'forgetting' in record:
    yield from _readings(record)
  if not record['ptq_gap']:
    yield ('recovery under quantization (PTQ gap)',
           'near or far questions in --data_forget')
  if not record['perplexity']['unlearned']:
    yield 'perplexity', 'text in --data_heldout_text'
  for key, measure, name in (
      ('structure', 'hidden_share', 'hidden share'),
      ('attack_verdict', 'attack', 'attacks')):
    if key in record and measure not in record[key]:
      yield name, record[key].get('reason', '')
  why = record.get('unmeasured', {})
  if not record['circuit']:
    yield 'circuit, CAD and AS-NC', why.get('cad', '')
  else:
    for key, name in (('cad', 'CAD'), ('as_nc', 'AS-NC')):
      if not record[key]:
        yield name, why.get(key, '')
  if not record['samples']:
    yield ('sample answers', 'near, far or held-out questions, and'
           ' --eval_generations above 0')


def _readings(record: Record) -> Iterator[tuple[str, str]]:
  """The readings of forgetting without questions, except the choice."""
  for reading, needed in _READINGS.items():
    if reading not in record['forgetting']:
      yield f'forgetting, {properties.READINGS[reading]}', needed
