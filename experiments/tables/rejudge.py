"""Judges a stored run again, from its stored answers."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any

import numpy as np

from experiments.tables import stored
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.report import write
from mansu_jax.runtime import environment
from mansu_jax.runtime import files
from mansu_jax.stages.judge import answers as answers_lib
from mansu_jax.stages.judge import attack_verdict
from mansu_jax.stages.judge import hidden_share
from mansu_jax.stages.judge import verdict


def rejudge(folders: Sequence[pathlib.Path]) -> None:
  """Replaces what records conclude; `environment` becomes this code's.

  The environment that measured goes to `environment.earlier`, as for a run that
  resumes.

  Args:
    folders: of stored runs.

  Raises:
    ValueError: there is no record, or the code differs from any commit.
  """
  for folder in folders:
    if not (folder / 'record.json').is_file():
      raise ValueError(
          f'There is no record.json in {folder}; wanted the folder of a stored'
          ' run. Correct the path.')
  code = environment.describe()  # The records that are written change the tree.
  for folder in folders:
    _rejudge(folder, code)


def _rejudge(folder: pathlib.Path, code: dict[str, Any]) -> None:
  run = stored.Run(folder)
  measured = dict(run.record['environment'])
  earlier = measured.pop('earlier', [])
  concluded = conclusions(run)
  not_finite = [  # Keys such as /forgetting/choice.
      *concluded.pop('not_finite', ()), *(
          key for key in run.record.get('not_finite', ())
          if key.split('/')[1] not in concluded)]
  found = {k: v for k, v in run.record.items() if k != 'not_finite'}
  found |= concluded | {
      'environment': code | {'earlier': [*earlier, measured]}}
  if not_finite:
    found['not_finite'] = not_finite
  stored.check_storable(found, folder)
  files.write_json(folder / 'record.json', found)


def conclusions(run: stored.Run) -> dict[str, Any]:
  """The entries of a record that follow from its stored answers.

  Args:
    run: a stored run.

  Returns:
    `forgetting`, `properties`, `verdict` and `data`, and where they were
    measured `structure`, `attacks`, `attacks_unknown`, `attack_setup` and
    `attack_verdict`. R is taken from the record.
  """
  record, config = run.record, run.record['config']
  options = dict(resamples=config['eval']['bootstrap'], seed=config['seed'])
  schemes = config['quant_schemes']
  readings = _readings(run, options)
  out = {'forgetting': verdict.readings_entry(readings, ('fp', *schemes))}
  out |= _attacks(run, options)
  hidden = hidden_share.of_answers(_hidden_answers(run), **options)
  if 'structure' in record:
    out['structure'] = hidden['structure']
  # Former records do not say it; none of their runs trained reverse questions.
  out['data'] = {'trained_readings': ['choice']} | record['data']
  reversed_facts = out['data'].get('reversed_facts', [])
  judged = answers_lib.judged(readings, reversed_facts)
  out['properties'] = {
      'F': verdict.property_f(
          judged, ('fp', *schemes), reverse=bool(reversed_facts)),
      'R': record['properties']['R'],
      'Q': verdict.property_q(judged, schemes),
      'S': verdict.property_s(hidden['S'], out.get('attack_verdict'))}
  out['verdict'] = verdict.overall(out['properties'])
  return write.as_json(out)


def _hidden_answers(run: stored.Run) -> dict[str, Any]:
  """What `hidden_share.of_answers` takes, from the stored run."""
  found = run.record.get('structure') or {'reason': 'it was not measured'}
  if 'mover_layer' not in found:
    return found
  lines = run.lines('hidden_share')
  if not lines or 'replaced' not in lines[0]:
    raise ValueError(
        f'{run.folder}/hidden_share.jsonl.gz lacks the answers of the gates,'
        ' which earlier versions did not write; resume the run and store it'
        ' again.')
  sharp = (found['gates']['sharp_mover']['holds'] if 'gates' in found
           else found['sharp'])
  return {'mover_layer': found['mover_layer'], 'by_layer': found['by_layer'],
          'sharp': sharp, 'lines': lines}


def _readings(
    run: stored.Run, options: dict[str, int]
) -> dict[str, answers_lib.Reading]:
  """The readings of the stored answers."""
  asked: dict[str, list[stored.Line]] = {
      name: [line for split in splits for line in run.split(split)]
      for name, splits in splits_lib.OF_READING.items()}
  for line in run.generated:
    asked.setdefault(line['reading'], []).append(line)
  return {name: _reading(asked[name], options)
          for name in answers_lib.READINGS if asked.get(name)}


def _reading(
    lines: Sequence[stored.Line], options: dict[str, int]
) -> answers_lib.Reading:
  """A reading from lines of answers or of generated answers."""
  columns = {name: {
      (model, precision): np.array([
          line['models'][model][precision][name] for line in lines])
      for model, precisions in lines[0]['models'].items()
      for precision in precisions} for name in ('correct', 'ignorance')}
  # Generated answers are to the questions of the first reading.
  questions = [questions_lib.of_line(line) for line in lines]
  if 'choices' not in lines[0]:
    questions = [dataclasses.replace(q, reading='choice') for q in questions]
  return answers_lib.Reading(questions=questions, options=options, **columns)


def _attacks(run: stored.Run, options: dict[str, int]) -> dict[str, Any]:
  """Entries of the attacks; {} without any."""
  sides: dict[str, list[stored.Line]] = {}
  for line in run.lines('attacks'):
    sides.setdefault(line['side'], []).append(line)
  if not sides:
    return {}
  setup = run.record['attack_setup']
  asked = {side: attack_verdict.Asked.of_lines(lines, setup[side]['losses'])
           for side, lines in sides.items()}
  return attack_verdict.entries(asked, **options) | {'attack_setup': setup | {
      side: setup[side] | found.describe() for side, found in asked.items()}}
