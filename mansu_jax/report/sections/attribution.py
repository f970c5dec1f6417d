"""The outcome and the pairs of an attribution run."""

from __future__ import annotations

from typing import Any

from mansu_jax.report import document
from mansu_jax.report import words
from mansu_jax.report.sections import circuit

Record = dict[str, Any]


def is_attribution(record: Record) -> bool:
  """Whether the record is from `--mode=attribute`."""
  return 'metric' in record


def title(record: Record) -> str:
  """Title of the report."""
  return f'Circuit of {record["model"]["name"]}'


def sentence(record: Record) -> str:
  """The outcome in one sentence."""
  found = record['circuit']
  compared = circuit.random_comparison(found)
  return (f'The circuit of {circuit.name(found)} has a faithfulness of'
          f' {words.number(found["faithfulness"], 2)}'
          f'{compared and "; " + compared}.')


def attributed(record: Record) -> document.Section:
  """The pairs and the model's metric on them."""
  config, metric = record['config'], record['metric']
  file = config['circuit'].get('file')  # Older records have no such field.
  rows = (
      ('model', record['model']['name']), ('pairs', _source(config)),
      ('pairs answered', f'{metric["answered"]} of {metric["pairs"]}'),
      ('mean metric, clean prompts', words.number(metric['clean'], 2)),
      ('mean metric, corrupted prompts', words.number(metric['corrupt'], 2)),
      ('integrated-gradient steps', str(config['attribution']['steps'])),
      *((('circuit, not selected here', file),) if file else ()))
  return document.Section('What was attributed', (document.Table(
      ('attribution', 'value'), rows, labels=2,
      caption='The metric is logit(right answer) - logit(corrupted answer) at'
      ' the last token of the prompt, averaged over the answered pairs. A pair'
      ' is answered if the model prefers the right answer on the clean'
      ' prompt.'),))


def _source(config: Record) -> str:
  """The file of the pairs, or the files of the questions they are made from."""
  options = config['attribution']
  file = options.get('pairs_file')
  if not file and not str(options['pairs']).isdecimal():
    file = options['pairs']  # Records before 0.3 have one field for both.
  return file or ('made from the train questions of'
                  f' {words.listing(config["data"]["forget"])}')
