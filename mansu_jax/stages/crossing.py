"""The retain set's prompts, asked of the forget set's subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import config as run_config
from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import crossed

# The base's final states [m, D] -> its next-token probabilities [m, V].
SayFn = Callable[[np.ndarray], np.ndarray]

_Questions = Sequence[questions_lib.Question]
_LEAK = 0.01  # Probability of a forgotten answer that rules a prompt out.
_ROWS = 64  # Prompts judged at once.


def prompts(
    config: run_config.RunConfig, splits: splits_lib.Splits
) -> list[crossed.Prompt]:
  """A sample of the crossed prompts, `--unlearn_crossed_pool` at most.

  Every relation of the retain set gives as many, where it has them.

  Raises:
    ValueError: the prompts of the forget or of the retain facts share no word
      that could be their subject.
  """
  options = config.unlearn
  if not options.crossed_batch:
    return []
  about = list(dict.fromkeys(
      s for s in _subjects(splits.forget_train) if s is not None))
  by_relation: dict[str, list[tuple[str, str | None]]] = {}
  for question, own in zip(
      splits.retain_train, _subjects(splits.retain_train)):
    by_relation.setdefault(question.relation, []).append(
        (question.prompt, own))
  rng = np.random.default_rng(config.seed)
  turns = []  # (whose turn, prompt)
  for group in by_relation.values():
    found = list(crossed.cross(crossed.templates(*zip(*group)), about))
    turns += enumerate(found[i] for i in rng.permutation(len(found)))
  if not turns:
    raise ValueError(
        f'--unlearn_crossed_batch={options.crossed_batch}, but the prompts of'
        ' the forget or of the retain facts share no word that could be their'
        ' subject; wanted several phrasings of each fact. Give them, or'
        ' --unlearn_crossed_batch=0.')
  turns.sort(key=lambda turn: turn[0])
  return [prompt for _, prompt in turns[:options.crossed_pool]]


def _subjects(questions: _Questions) -> list[str | None]:
  """The subject of each question, found relation by relation."""
  by_relation: dict[str, list[questions_lib.Question]] = {}
  for question in questions:
    by_relation.setdefault(question.relation, []).append(question)
  found = {(name, fact): subject for name, group in by_relation.items()
           for fact, subject in crossed.subjects(
               [q.fact for q in group], [q.prompt for q in group]).items()}
  return [found[q.relation, q.fact] for q in questions]


def spans(
    config: run_config.RunConfig, splits: splits_lib.Splits, tokenizer: Any,
    hidden: batches_lib.HiddenFn, say: SayFn) -> batches_lib.Spans | None:
  """Crossed prompts with the base's states from the subject on.

  Prompts at whose end the base would name what is to be forgotten of their
  subject are left out.

  Raises:
    ValueError: as `prompts`, or no prompt is left.
  """
  chosen = prompts(config, splits)
  if not chosen:
    return None
  ids = tokenization.encode_prompts([p.text for p in chosen], tokenizer)
  before = [p.text[:p.start].rstrip() for p in chosen]
  start = [len(tokens) for tokens in tokenization.encode(before, tokenizer)]
  tokens, real = batching.pad_sequences(ids)
  first = len(tokenization.prefix_ids(tokenizer)) + np.array(start)[:, None]
  made = batches_lib.add_reference(
      batches_lib.make_spans(
          tokens, real & (np.arange(tokens.shape[1]) >= first)),
      hidden, packing.fill_rows)
  kept = _without_leaks(
      made, chosen, _answers(splits.forget_train, tokenizer), say)
  logging.info('crossed prompts: %d, and %d left out that lead to what is to'
               ' be forgotten', len(kept), len(chosen) - len(kept))
  if not kept.size:
    raise ValueError(
        f'Each of {len(chosen)} crossed prompts leads the base to what is to be'
        ' forgotten; wanted some that do not. Give retain facts of other'
        ' relations, or --unlearn_crossed_batch=0.')
  return made.take(kept)


def _answers(questions: _Questions, tokenizer: Any) -> dict[str, set[int]]:
  """First tokens of the answers to be forgotten, by subject."""
  found: dict[str, set[int]] = {}
  for question, encoded, subject in zip(
      questions, tokenization.encode_questions(questions, tokenizer),
      _subjects(questions)):
    if subject is not None:
      found.setdefault(subject, set()).add(
          encoded.choices[question.answer_index][0])
  return found


def _without_leaks(
    made: batches_lib.Spans, chosen: Sequence[crossed.Prompt],
    answers: dict[str, set[int]], say: SayFn) -> np.ndarray:
  """Rows at whose end the base gives no forgotten answer `_LEAK`."""
  last = made.weight.sum(1).astype(int) - 1
  ends = made.reference[np.arange(last.size), last]  # [n, D]
  ends = np.pad(ends, ((0, -last.size % _ROWS), (0, 0)))  # One shape.
  says = np.concatenate([
      say(ends[i:i + _ROWS]) for i in range(0, len(ends), _ROWS)])
  leak = np.array([row[sorted(answers[p.subject])].max()
                   for row, p in zip(says, chosen)])
  return np.flatnonzero(leak < _LEAK)
