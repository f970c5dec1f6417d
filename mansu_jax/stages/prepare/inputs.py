"""Reads and checks everything a run needs, before any long work starts."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import fnmatch
from typing import Any

import numpy as np

from mansu_jax import quant
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data.readers import jsonl
from mansu_jax.data.readers import text as text_lib

_CALIBRATION = 'shipped:text_retain.jsonl'
_WILD = '*?['


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The data of a run.

  Attributes:
    splits: questions by role and use, and the text to retain.
    evaluation: `{split: questions}`, thinned to `--eval_questions` or
      `--eval_kept_questions` each.
    heldout_text: documents never trained on.
    calibration: documents for calibrated quantizers; empty where there are
      none of these.
    hashes: `{file: sha256}`.
  """

  splits: splits_lib.Splits
  evaluation: dict[str, list[questions_lib.Question]]
  heldout_text: list[text_lib.TextDocument]
  calibration: list[text_lib.TextDocument]
  hashes: dict[str, str]


def expand(paths: Sequence[str]) -> tuple[str, ...]:
  """Expands `shipped:` names that hold wildcards, in alphabetical order.

  Raises:
    ValueError: a wildcard matches no shipped file.
  """
  out = []
  for path in paths:
    name = path.removeprefix(jsonl.SHIPPED)
    if name == path or not any(c in name for c in _WILD):
      out.append(path)
      continue
    found = fnmatch.filter(jsonl.shipped_names(), name)
    if not found:
      raise ValueError(
          f'{path!r} matches no shipped file; the package holds'
          f' {jsonl.shipped_names()}.')
    out += [jsonl.SHIPPED + f for f in found]
  return tuple(out)


def read(config: run_config.RunConfig) -> Inputs:
  """Reads all files.

  Raises:
    ValueError: as the readers do, naming file and line.
  """
  files = {f.name: expand(getattr(config.data, f.name))
           for f in dataclasses.fields(config.data)
           if isinstance(getattr(config.data, f.name), tuple)}
  _check_named_once({k: v for k, v in files.items() if k != 'calibration'})
  splits = splits_lib.read_splits(
      forget=files['forget'], retain=files['retain'],
      heldout=files['heldout'], text=files['text'],
      require_train=config.mode in ('unlearn', 'plan'))
  heldout_text = [
      d for path in files['heldout_text'] for d in text_lib.read_text(path)]
  _check_other_text(splits.text, heldout_text)
  files['calibration'] = _calibration_files(config, files['calibration'])
  calibration = [d for path in files['calibration']
                 for d in text_lib.read_text(path)]
  _check_other_text(calibration, heldout_text, '--data_calibration')
  most = dict.fromkeys(splits_lib.KEPT, config.eval.kept_questions)
  paths = list(dict.fromkeys(p for named in files.values() for p in named))
  if config.attribution.pairs_file:
    paths.append(config.attribution.pairs_file)
  if config.circuit.file:
    paths.append(config.circuit.file)
  return Inputs(
      splits=splits,
      evaluation={name: thin(
          questions, most.get(name) or config.eval.questions, config.seed)
                  for name, questions in splits.evaluation.items()},
      heldout_text=heldout_text,
      calibration=calibration,
      hashes={path: jsonl.sha256(path) for path in paths})


def _calibration_files(
    config: run_config.RunConfig, given: Sequence[str]) -> Sequence[str]:
  """The files of calibration text, if a quantizer needs some."""
  needed = any(n in quant.CALIBRATED for n in config.quant_schemes)
  if given and not needed:
    raise ValueError(
        f'--data_calibration={given[0]} is for calibrated quantizers, but'
        f' --quant_schemes={",".join(config.quant_schemes)} has none; wanted'
        f' {" or ".join(quant.CALIBRATED)} among them. Leave the text out.')
  return (given or (_CALIBRATION,)) if needed else ()


def _check_named_once(files: dict[str, list[str]]) -> None:
  """Raises ValueError where a file is named twice."""
  flag_of: dict[Any, str] = {}
  for name, paths in files.items():
    for path in paths:
      first = flag_of.setdefault(jsonl.resolve(path), name)
      repeated = paths.count(path) > 1
      if first != name or repeated:
        where = 'twice' if repeated else f'in --data_{first} too'
        raise ValueError(
            f'--data_{name}={path} is named {where}; wanted each file once. (A'
            ' data flag adds to those of a flagfile: leave out one of them, or'
            ' use a flagfile without data, such as experiments/recipe.flags.)')


def _check_other_text(
    seen_before: Sequence[text_lib.TextDocument],
    heldout: Sequence[text_lib.TextDocument], where: str = '--data_text'
) -> None:
  """Raises ValueError where a document is both used and measured on."""
  seen = {splits_lib.plain(d.text) for d in seen_before}
  for document in heldout:
    if splits_lib.plain(document.text) in seen:
      raise ValueError(
          f'The document of kind {document.kind!r} that starts'
          f' {document.text[:40]!r} is in {where} and in'
          ' --data_heldout_text; wanted text that no training sees in the'
          ' second. Remove it from one of the two.')


def thin(
    questions: list[questions_lib.Question], limit: int, seed: int
) -> list[questions_lib.Question]:
  """At most `limit` questions (0: all), spread evenly over facts.

  Every fact keeps its first question before any fact keeps a second; which
  one is first is drawn by the seed, so all phrasings are used.
  """
  if not limit or len(questions) <= limit:
    return list(questions)
  order = np.random.default_rng(seed).permutation(len(questions))
  seen: dict[str, int] = {}
  turn = np.zeros(len(questions), int)
  for i in order:
    fact = questions[i].fact
    turn[i] = seen.get(fact, 0)
    seen[fact] = turn[i] + 1
  rank = np.empty(len(questions), int)
  rank[order] = np.arange(len(questions))
  kept = np.lexsort((rank, turn))[:limit]
  return [questions[i] for i in sorted(kept)]


def describe(inputs: Inputs) -> dict[str, Any]:
  """What the record says of the data."""
  return {
      'sha256': inputs.hashes,
      'questions': {k: len(v) for k, v in inputs.evaluation.items()},
      'facts': {k: len({q.fact for q in v})
                for k, v in inputs.evaluation.items()},
      'missing_splits': list(inputs.splits.missing),
  }
