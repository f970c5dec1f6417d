"""What only an audit says: which two models, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mansu_jax.report import document
from mansu_jax.report.sections import movement
from mansu_jax.report import words

Record = dict[str, Any]

_FLOATS = ('float32', 'bfloat16', 'float16')
_LARGE = 0.2  # Of the base's norm; the shipped experiments stay below 0.1.
# Split -> what it is made of.
_GIVES = {
    'forget': 'train questions in --data_forget',
    'forget_paraphrase': 'near questions in --data_forget',
    'forget_far': 'far questions in --data_forget',
    'retain': 'near or far questions in --data_retain',
    'retain_heldout': 'questions in --data_heldout',
}


def is_audit(record: Record) -> bool:
  """Whether the record is of an audit."""
  return 'pair' in record


def names(record: Record) -> tuple[str, str]:
  """Names of the audited model and of its base."""
  return record['pair']['name'], record['model']['name']


def title(record: Record) -> str:
  """The report's title."""
  model, base = names(record)
  state = words.verdict(record['verdict']['passed'])
  return f'Audit of {model} against {base}: {state}'


def compared(record: Record) -> document.Section:
  """The two models, in what type, and what moved between them."""
  (model, base), pair = names(record), record['pair']
  text = (
      f'{model} (stored in {pair["stored_as"]}) against its base {base} (stored'
      f' in {pair["base_stored_as"]}), both as {pair["compared_as"]} holds'
      f' them: {moved(record)}. That the weights are near shows two states of'
      ' one model, not that no other step lay between them.')
  if (record['movement']['total']['relative'] or 0) > _LARGE:
    text += ' That is far for an edit: make sure that this is the base.'
  if rest := beyond_rounding(record):
    text += f' A base in a coarser type differs by its rounding alone: {rest}.'
  if pair['stored_as'] not in _FLOATS:
    text += (' The audited file is quantized itself, so that its weights differ'
             ' from the base\'s by that rounding too: survival and shares of'
             ' weights that moved are of both together.')
  return document.Section('What was compared', (document.Text(text),))


def moved(record: Record) -> str:
  """How much moved, and where, in a few words."""
  found = record['movement']
  layers = movement.layers(found['layers'])
  where = (f'none of {len(found["layers"])} layers'
           if layers is None else f'layers {layers}')
  return (f'{words.percent(found["total"]["moved"])} of all weights moved,'
          f' in {where}; |d| / |base|'
          f' {words.significant(found["total"]["relative"])}')


def beyond_rounding(record: Record) -> str:
  """How much moved for more than the base's storage type; '' if all."""
  share = record['pair'].get('moved_beyond_rounding')
  return '' if share is None else (
      f'{words.percent(share)} moved for more than the base\'s rounding to'
      f' {record["pair"]["base_stored_as"]}')


def not_measured(record: Record) -> list[document.Section]:
  """What is missing and what would give it; nothing if all is there."""
  rows = tuple(_missing(record))
  if not rows:
    return []
  return [document.Section('What was not measured', (
      document.Text('The data of this audit do not allow what follows; the'
                    ' properties that rest on it are inconclusive.'),
      document.Table(('not measured', 'what would allow it, or why'), rows,
                     labels=2)))]


def _missing(record: Record) -> Iterator[tuple[str, str]]:
  for split in words.SPLITS:
    if split not in record['accuracy']:
      yield f'accuracy on {split}', _GIVES[split]
  if not record['ptq_gap']:
    yield ('what quantization brings back (ptq_gap)',
           'near or far questions in --data_forget')
  if not record['perplexity']['unlearned']:
    yield 'perplexity', 'text in --data_heldout_text'
  why = record['properties']['S'].get('reason', '')
  if not record['circuit']:
    yield 'circuit, CAD and AS-NC', why
  elif not (record['cad'] and record['as_nc']):
    yield 'CAD' if not record['cad'] else 'AS-NC', why
  if not record['samples']:
    yield 'free answers', ('near or far questions, or held-out ones, and'
                           ' --eval_generations above 0')
