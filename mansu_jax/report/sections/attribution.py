"""What only attribution alone says: what was attributed, and the outcome."""

from __future__ import annotations

from typing import Any

from mansu_jax.report.sections import circuit
from mansu_jax.report import document
from mansu_jax.report import words

Record = dict[str, Any]


def is_attribution(record: Record) -> bool:
  """Whether the record is of attribution alone."""
  return 'metric' in record


def title(record: Record) -> str:
  """The report's title."""
  return f'Circuit of {record["model"]["name"]}'


def sentence(record: Record) -> str:
  """The outcome in one sentence."""
  found = record['circuit']
  beside = circuit.beside_random(
      found, 'selected alike' if found['level'] == 'edge' else 'of its shape')
  return (f'{circuit.name(found)} have a faithfulness of'
          f' {words.number(found["faithfulness"], 2)}'
          f'{beside and "; " + beside}.')


def attributed(record: Record) -> document.Section:
  """The pairs, and what the model says on them."""
  config, metric = record['config'], record['metric']
  source = config['attribution']['pairs']
  files = words.listing(config['data']['forget'])
  made = (f'made of the train questions of {files}'
          if source.isdecimal() else source)
  given = config['circuit'].get('file')  # Not in older records.
  rows = (
      ('model', record['model']['name']), ('pairs', made),
      ('answered', f'{metric["answered"]} of {metric["pairs"]}'),
      ('metric, clean prompts', words.number(metric['clean'], 2)),
      ('metric, corrupted prompts', words.number(metric['corrupt'], 2)),
      ('integrated-gradient steps', str(config['attribution']['steps'])),
      *((('circuit, not selected here', given),) if given else ()))
  return document.Section('What was attributed', (
      document.Text(
          'The metric is logit(right answer) - logit(corrupted answer) at the'
          ' end of the prompt, on average over the answered pairs: those whose'
          ' right answer the model prefers on the clean prompt.'),
      document.Table(('attribution', ''), rows, labels=2)))
