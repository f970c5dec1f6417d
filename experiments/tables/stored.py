"""Stored runs: record, answers and generated answers of each seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools
import gzip
import json
import pathlib
import shutil
from typing import Any

import numpy as np

from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.statistics import forgetting
from mansu_jax.statistics import seeds

RESULTS = pathlib.Path(__file__).parents[1] / 'results'
MODELS = ('base', 'unlearned')
# The readings that decide, and the ways of asking that each joins.
READINGS = {
    'choice': ('choice',), 'choice_unseen': ('choice_unseen',),
    'generation': ('generation', 'generation_few_shot'),
    'reverse': ('reverse',)}
CHOICES = ('choice', 'choice_unseen')  # What Q pools.
_RECORD = 'record.json'
_ANSWERS = ('answers', 'generations', 'hidden_share', 'attacks')

Record = dict[str, Any]
Line = dict[str, Any]


class Run:
  """A stored run.

  Attributes:
    folder: holds record.json, answers.jsonl.gz, and where they were measured
      generations.jsonl.gz, hidden_share.jsonl.gz and attacks.jsonl.gz.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder

  @functools.cached_property
  def record(self) -> Record:
    """The run's record."""
    return json.loads((self.folder / _RECORD).read_text(encoding='utf-8'))

  @property
  def seed(self) -> int:
    """Seed of the run."""
    return self.record['config']['seed']

  @property
  def schemes(self) -> list[str]:
    """Quantizers of the run."""
    return self.record['config']['quant_schemes']

  @property
  def commit(self) -> str:
    """The code that judged; `environment.earlier` has what ran before."""
    return self.record['environment']['commit']

  @functools.cached_property
  def answers(self) -> list[Line]:
    """Answers to questions with choices, those of training included."""
    return self.lines('answers')

  @functools.cached_property
  def generated(self) -> list[Line]:
    """Generated answers; [] without any."""
    return self.lines('generations')

  def lines(self, name: str) -> list[Line]:
    """Lines of `NAME.jsonl.gz`; [] if the run has none."""
    path = self.folder / f'{name}.jsonl.gz'
    if not path.is_file():
      return []
    with gzip.open(path, 'rt', encoding='utf-8') as file:
      return [json.loads(line) for line in file]

  @functools.cached_property
  def _splits(self) -> dict[str, list[Line]]:
    found = {}
    for line in self.answers:
      found.setdefault(line['split'], []).append(line)
    return found

  def split(self, name: str) -> list[Line]:
    """Answers of one split."""
    return self._splits.get(name, [])

  def asked(self, *ways: str) -> list[Line]:
    """Answers on forget facts by way of asking; no question was trained on."""
    found = []
    for way in ways:
      found += [line for split in splits_lib.OF_READING.get(way, ())
                for line in self.split(split)]
      found += [line for line in self.generated if line['reading'] == way]
    return found


def find(results: pathlib.Path, name: str) -> list[Run]:
  """The stored seeds of a setting, by seed; [] if none is stored.

  Args:
    results: folder of all stored runs.
    name: folder of the setting below it.

  Raises:
    ValueError: two folders hold the same seed.
  """
  runs = [Run(path.parent) for path in (results / name).glob(f's*/{_RECORD}')]
  runs.sort(key=lambda run: run.seed)
  numbers = [run.seed for run in runs]
  if len(set(numbers)) < len(numbers):
    raise ValueError(
        f'The folders of {results / name} have the seeds {numbers}; wanted each'
        ' seed once. Store each run under its own seed.')
  return runs


def ignorance(found: Record, model: str, precision: str) -> float:
  """Probability that a model answers right without knowing the fact.

  Args:
    found: a line of answers, or a reading of a record's `forgetting`. The
      `ignorance` of earlier versions is one number.
    model: `base` or `unlearned`.
    precision: `fp` or a quantizer.
  """
  own = found.get('models', {}).get(model, {}).get(precision, {})
  value = own.get('ignorance', found.get('ignorance'))
  return value[model][precision] if isinstance(value, dict) else value


def right(lines: Sequence[Line], model: str, precision: str) -> np.ndarray:
  """Whether each answer is right, [n] float64."""
  return np.array([line['models'][model][precision]['correct']
                   for line in lines], np.float64)


def facts(lines: Sequence[Line]) -> list[str]:
  """The fact of each question."""
  return [line['fact'] for line in lines]


def columns(lines: Sequence[Line], precision: str) -> seeds.Asked:
  """The answers as `seeds.known_share` takes them.

  Args:
    lines: answers of one seed to questions about the forget facts; of one or
      several readings and relations.
    precision: `fp` or a quantizer.
  """
  questions = [questions_lib.of_line(line) for line in lines]
  return seeds.Asked(
      right=np.stack([right(lines, model, precision) for model in MODELS], 1),
      ignorance=np.array([[ignorance(line, model, precision)
                           for model in MODELS] for line in lines]),
      facts=facts(lines),
      forms=forgetting.forms_of(
          [f'{q.reading} {q.wording}' for q in questions],
          [q.relation for q in questions], facts(lines)))


def store(run: pathlib.Path, dest: pathlib.Path) -> None:
  """Copies a finished run's record and its compressed answers.

  Equal runs give equal bytes. What `dest` holds of an earlier run is replaced.

  Args:
    run: workdir of a finished run.
    dest: a folder such as experiments/results/quickstart/s0.

  Raises:
    ValueError: the run has no record or, unless it only attributes, no answers;
      its code differs from any
      commit, or its config holds an absolute path.
  """
  _check_file(run / _RECORD)
  record = Run(run).record
  if record['config']['mode'] != 'attribute':
    _check_file(run / 'answers.jsonl')
  check_storable(record, run)
  dest.mkdir(parents=True, exist_ok=True)
  shutil.copyfile(run / _RECORD, dest / _RECORD)
  for name in _ANSWERS:
    source, target = run / f'{name}.jsonl', dest / f'{name}.jsonl.gz'
    if source.is_file():
      with open(target, 'wb') as raw, gzip.GzipFile(
          '', mode='wb', fileobj=raw, mtime=0) as file:
        file.write(source.read_bytes())
    else:
      target.unlink(missing_ok=True)


def _check_file(path: pathlib.Path) -> None:
  """Raises ValueError if a finished run lacks the file."""
  if not path.is_file():
    raise ValueError(
        f'There is no {path.name} in {path.parent}; wanted the workdir of a'
        ' finished run. Run it, or correct the path.')


def check_storable(record: Record, run: pathlib.Path) -> None:
  """Raises ValueError unless others can repeat the run.

  Args:
    record: of the run.
    run: its folder, for the message.
  """
  environment = record['environment']
  for one in (environment, *environment.get('earlier', ())):
    commit = one['commit']
    if not commit or commit.endswith('+changes'):
      raise ValueError(
          f'The run {run} is of commit {commit}; wanted code that is committed'
          ' without changes, so that others can repeat it. Commit and run'
          ' again.')
  for name, value in _strings(record['config'], 'config'):
    if pathlib.PurePath(value).is_absolute():
      raise ValueError(
          f'{name} of the run {run} is {value}; wanted a path relative to the'
          ' repository, which exists for others. Run again from the'
          ' repository with a relative path.')


def _strings(value: Any, name: str) -> Iterator[tuple[str, str]]:
  """The strings of nested dictionaries and lists, with their names."""
  if isinstance(value, str):
    yield name, value
  elif isinstance(value, dict):
    for key, item in value.items():
      yield from _strings(item, f'{name}.{key}')
  elif isinstance(value, list):
    for item in value:
      yield from _strings(item, name)
