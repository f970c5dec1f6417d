"""Reads all data files of a run and checks them against each other.

`read` returns the `Inputs`; `thin` draws a sample of questions evenly over
facts.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
import dataclasses
import fnmatch
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import quant
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import stated_facts
from mansu_jax.data.readers import jsonl
from mansu_jax.data.readers import text as text_lib

_CALIBRATION = 'shipped:text_retain.jsonl'
_WILDCARDS = '*?['


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
  """The data of a run.

  Attributes:
    splits: Questions by role and use, and the text to retain.
    evaluation: `{split: questions}`, thinned to `--eval_questions` or
      `--eval_kept_questions` each.
    heldout_text: Documents that are never trained on.
    calibration: Documents for calibrated quantizers; empty without any.
    hashes: `{file: SHA-256}`.
    dropped_texts: Number of documents left out of the text to retain, because
      they state a fact to forget.
  """

  splits: splits_lib.Splits
  evaluation: dict[str, list[questions_lib.Question]]
  heldout_text: list[text_lib.TextDocument]
  calibration: list[text_lib.TextDocument]
  hashes: dict[str, str]
  dropped_texts: int = 0


def expand(paths: Sequence[str]) -> tuple[str, ...]:
  """Expands wildcards in `shipped:` names, in alphabetical order.

  Raises:
    ValueError: A pattern matches no shipped file.
  """
  out = []
  for path in paths:
    name = path.removeprefix(jsonl.SHIPPED)
    if name == path or not any(c in name for c in _WILDCARDS):
      out.append(path)
      continue
    found = fnmatch.filter(jsonl.shipped_names(), name)
    if not found:
      raise ValueError(
          f'{path!r} matches no shipped file; the package contains'
          f' {jsonl.shipped_names()}. Correct the pattern.')
    out += [jsonl.SHIPPED + f for f in found]
  return tuple(out)


def read(config: run_config.RunConfig) -> Inputs:
  """Reads all data files of a run.

  Raises:
    ValueError: A reader refuses a file, naming the line; a file has two roles;
      or heldout text is also used otherwise.
  """
  files = {f.name: expand(getattr(config.data, f.name))
           for f in dataclasses.fields(config.data)
           if isinstance(getattr(config.data, f.name), tuple)}
  _check_named_once({k: v for k, v in files.items() if k != 'calibration'})
  splits = splits_lib.read_splits(
      forget=files['forget'], retain=files['retain'],
      heldout=files['heldout'], text=files['text'], unknown=files['unknown'],
      require_train=config.mode in ('unlearn', 'plan'))
  splits, dropped_texts = _drop_stating_texts(splits)
  heldout_text = _read_texts(files['heldout_text'])
  _check_disjoint(splits.text, heldout_text, '--data_text')
  files['calibration'] = _calibration_files(
      config.quant_schemes, files['calibration'])
  calibration = _read_texts(files['calibration'])
  _check_disjoint(calibration, heldout_text, '--data_calibration')
  paths = list(dict.fromkeys(p for named in files.values() for p in named))
  paths += filter(None, (config.attribution.pairs_file, config.circuit.file))
  return Inputs(
      splits=splits,
      evaluation=_thin_splits(config.eval, splits.evaluation, config.seed),
      heldout_text=heldout_text,
      calibration=calibration,
      hashes={path: jsonl.sha256(path) for path in paths},
      dropped_texts=dropped_texts)


def _drop_stating_texts(
    splits: splits_lib.Splits) -> tuple[splits_lib.Splits, int]:
  """Drops texts to retain that state a fact to forget; also their number."""
  kept, dropped = stated_facts.drop(splits.text, [
      q for name in ('forget', *splits_lib.FORGOTTEN)
      for q in splits.evaluation[name]])
  if dropped:
    logging.info(
        'Left out %d of %d documents of --data_text: they state a fact to'
        ' forget.', len(dropped), len(splits.text))
  if dropped and not kept:
    raise ValueError(
        f'Each of the {len(dropped)} documents of --data_text states a fact to'
        f' forget, such as the one that starts with {dropped[0].text[:40]!r};'
        ' wanted text that does not teach the fact again. Give other text, or'
        ' the same text as JSONL with one short document per line.')
  return dataclasses.replace(splits, text=kept), len(dropped)


def _read_texts(paths: Sequence[str]) -> list[text_lib.TextDocument]:
  return [d for path in paths for d in text_lib.read_text(path)]


def _thin_splits(
    options: run_config.EvalConfig,
    splits: Mapping[str, list[questions_lib.Question]], seed: int
) -> dict[str, list[questions_lib.Question]]:
  """Thins each evaluation split to the number that its flag allows.

  The readings with other choices ask the prompts that the first reading asks,
  each with all its sets of choices: the model computes a prompt once for all.
  So do the reverse questions, of which prompts are counted.
  """
  limits = dict.fromkeys(splits_lib.KEPT, options.kept_questions)
  out = {name: thin(questions, limits.get(name) or options.questions, seed)
         for name, questions in splits.items()}
  prompts = lambda questions: {(q.fact, q.prompt): q for q in questions}
  asked = prompts(q for split in splits_lib.FORGOTTEN for q in out[split])
  for reading in ('choice_unseen', 'choice_same_subject'):
    for name in splits_lib.OF_READING[reading]:
      out |= _sharing(name, splits, asked)
  for name in splits_lib.OF_READING['reverse']:
    first = list(prompts(splits.get(name, ())).values())
    out |= _sharing(
        name, splits, prompts(thin(first, options.questions, seed)))
  return out


def _sharing(
    name: str, splits: Mapping[str, list[questions_lib.Question]],
    asked: Container[tuple[str, str]]
) -> dict[str, list[questions_lib.Question]]:
  """A split's questions whose fact and prompt are asked; {} without any."""
  found = [q for q in splits.get(name, ()) if (q.fact, q.prompt) in asked]
  return {name: found} if found else {}


def _calibration_files(
    schemes: Sequence[str], given: Sequence[str]) -> Sequence[str]:
  """The calibration files; none unless a quantizer is calibrated."""
  needed = any(name in quant.CALIBRATED for name in schemes)
  if given and not needed:
    raise ValueError(
        f'--data_calibration={given[0]} is for calibrated quantizers, but'
        f' --quant_schemes={",".join(schemes)} has none; wanted'
        f' {" or ".join(quant.CALIBRATED)} among them. Leave the text out.')
  return (given or (_CALIBRATION,)) if needed else ()


def _check_named_once(files: Mapping[str, Sequence[str]]) -> None:
  """Raises ValueError if two flags, or one flag twice, name the same file."""
  flag_of: dict[Any, str] = {}
  for name, paths in files.items():
    for path in paths:
      first = flag_of.setdefault(jsonl.resolve(path), name)
      repeated = paths.count(path) > 1
      if first != name or repeated:
        where = 'twice' if repeated else f'in --data_{first} too'
        raise ValueError(
            f'--data_{name}={path} is named {where}; wanted each file once.'
            ' Data flags add to those of a flagfile: leave out one of them.')


def _check_disjoint(
    used: Sequence[text_lib.TextDocument],
    heldout: Sequence[text_lib.TextDocument], flag: str) -> None:
  """Raises ValueError if a heldout document is also used otherwise.

  Args:
    used: Documents that training or calibration uses.
    heldout: Documents that measure perplexity.
    flag: Flag of the used documents.
  """
  seen = {splits_lib.plain(d.text) for d in used}
  for document in heldout:
    if splits_lib.plain(document.text) in seen:
      raise ValueError(
          f'The document of kind {document.kind!r} that starts with'
          f' {document.text[:40]!r} is in both {flag} and'
          ' --data_heldout_text; wanted held-out text that no other flag names.'
          ' Remove it from one of them.')


def thin(
    questions: list[questions_lib.Question], limit: int, seed: int
) -> list[questions_lib.Question]:
  """Draws at most `limit` questions (0: all), evenly over facts.

  Each fact gets one question before any fact gets a second one. The order of a
  fact's questions is random, so that all phrasings occur.

  Args:
    questions: Questions to choose from.
    limit: Largest number of questions; 0 for all.
    seed: Seed of the draw.

  Returns:
    The chosen questions in their original order.
  """
  if not limit or len(questions) <= limit:
    return list(questions)
  order = np.random.default_rng(seed).permutation(len(questions))
  count: dict[str, int] = {}
  turn = np.zeros(len(questions), int)
  for i in order:
    fact = questions[i].fact
    turn[i] = count.get(fact, 0)
    count[fact] = turn[i] + 1
  rank = np.empty(len(questions), int)
  rank[order] = np.arange(len(questions))
  chosen = np.lexsort((rank, turn))[:limit]
  return [questions[i] for i in sorted(chosen)]


def reversed_facts(inputs: Inputs) -> list[str]:
  """Facts of the forget set that a training question asks for in reverse."""
  return sorted({q.fact for q in inputs.splits.forget_train
                 if q.reading == 'reverse'})


def describe(inputs: Inputs) -> dict[str, Any]:
  """The data entry of the record."""
  return {
      'sha256': inputs.hashes,
      'questions': {k: len(v) for k, v in inputs.evaluation.items()},
      'facts': {k: len({q.fact for q in v})
                for k, v in inputs.evaluation.items()},
      'trained_readings': sorted(
          {q.reading for q in inputs.splits.forget_train}),
      'reversed_facts': reversed_facts(inputs),
      'missing_splits': list(inputs.splits.missing),
      'dropped_texts': inputs.dropped_texts,
  }
