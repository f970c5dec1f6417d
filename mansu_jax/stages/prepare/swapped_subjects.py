"""The retain set's prompts, asked of the forget set's subjects."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging
import numpy as np

from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import subjects as subjects_lib
from mansu_jax.data import tokenization
from mansu_jax.unlearn import batches as batches_lib

# The base's final states [m, D] -> its next-token probabilities [m, V].
SayFn = Callable[[np.ndarray], np.ndarray]

_Questions = Sequence[questions_lib.Question]
_LEAK = 0.01  # Probability of a forgotten answer that rules a prompt out.
_ROWS = 64  # Prompts judged at once.


def prompts(
    config: run_config.RunConfig, splits: splits_lib.Splits
) -> tuple[list[subjects_lib.Prompt], dict[str, int]]:
  """A sample of the swapped-subject prompts, `--unlearn_swapped_pool` at most.

  Every relation of the retain set gives as many, where it has them. What the
  forget set or the evaluation asks word for word is passed over: the first is
  to be forgotten, and the second must not be trained on.

  Args:
    config: the run's.
    splits: its questions.

  Returns:
    The prompts, and how many forget `subjects` there are,
    `facts_without_subject` and prompts `asked_elsewhere` that were passed
    over.

  Raises:
    ValueError: the prompts of the forget or of the retain facts share no word
      that could be their subject, or all are asked elsewhere.
  """
  options = config.unlearn
  if not options.swapped_batch:
    return [], {}
  found = subjects_lib.of_questions(splits.forget_train)
  about = list(dict.fromkeys(s for s in found if s is not None))
  phrasings = _phrasings(splits.retain_train)
  if not about or not phrasings:
    raise ValueError(
        f'--unlearn_swapped_batch={options.swapped_batch}, but the prompts of'
        f' the {"retain" if about else "forget"} facts share no word that could'
        ' be their subject; wanted several phrasings of each fact. Give them,'
        ' or --unlearn_swapped_batch=0.')
  rng = np.random.default_rng(config.seed)
  turns = collections.deque(_asked(f, about, rng) for f in phrasings)
  asked = {splits_lib.plain(q.prompt) for q in splits.forget_train}
  asked |= {splits_lib.plain(q.prompt)
            for questions in splits.evaluation.values() for q in questions}
  chosen: dict[str, subjects_lib.Prompt] = {}
  passed_over = 0
  while turns and len(chosen) < options.swapped_pool:
    prompt = next(turns[0], None)
    if prompt is None:
      turns.popleft()
    elif splits_lib.plain(prompt.text) in asked:
      passed_over += 1
    else:
      chosen.setdefault(prompt.text, prompt)
      turns.rotate(-1)
  if not chosen:
    raise ValueError(
        f'--unlearn_swapped_batch={options.swapped_batch}, but each retain'
        ' phrasing asked of a subject to be forgotten is a question of the'
        ' forget set or of the evaluation; wanted some that are not. Give'
        ' retain facts of other relations, or --unlearn_swapped_batch=0.')
  return list(chosen.values()), {
      'subjects': len(about), 'asked_elsewhere': passed_over,
      'facts_without_subject': len({
          q.fact for q, s in zip(splits.forget_train, found) if s is None})}


def _phrasings(questions: _Questions) -> list[list[tuple[str, ...]]]:
  """Templates by relation, of those that have some."""
  by_relation: dict[str, list[tuple[str, str | None]]] = {}
  subjects = subjects_lib.of_questions(questions)
  for question, own in zip(questions, subjects):
    by_relation.setdefault(question.relation, []).append(
        (question.prompt, own))
  found = [subjects_lib.templates(*zip(*group))
           for group in by_relation.values()]
  return [forms for forms in found if forms]


def _asked(
    forms: Sequence[tuple[str, ...]], about: Sequence[str],
    rng: np.random.Generator) -> Iterator[subjects_lib.Prompt]:
  """Every phrasing with every subject, in random order."""
  order = rng.permutation(len(forms) * len(about))
  for i in order:
    yield subjects_lib.ask(forms[i // len(about)], about[i % len(about)])


def check(
    config: run_config.RunConfig, splits: splits_lib.Splits, tokenizer: Any,
    max_position: int) -> None:
  """Raises ValueError where `prompts` does, or where one is too long."""
  chosen, _ = prompts(config, splits)
  encoded, _ = _encode(chosen, tokenizer, config.data.chat)
  for prompt, ids in zip(chosen, encoded):
    if len(ids) > max_position:
      raise ValueError(
          f'The swapped-subject prompt {prompt.text!r} has {len(ids)} tokens, but the'
          f' model knows positions up to {max_position}; wanted at most that.'
          ' Shorten the retain prompts, or give --unlearn_swapped_batch=0.')


def _encode(
    chosen: Sequence[subjects_lib.Prompt], tokenizer: Any, chat: bool
) -> tuple[list[list[int]], list[int]]:
  """Token ids of each prompt, and how many of them are before its subject."""
  texts = [p.text for p in chosen]
  return (tokenization.encode_prompts(texts, tokenizer, chat=chat),
          tokenization.tokens_before(
              texts, [p.start for p in chosen], tokenizer, chat=chat))


def spans(
    config: run_config.RunConfig, splits: splits_lib.Splits, tokenizer: Any,
    refer: Callable[[batches_lib.Spans], batches_lib.Spans], say: SayFn
) -> tuple[batches_lib.Spans, dict[str, int]]:
  """Swapped-subject prompts with the base's states from the subject on.

  Prompts at whose end the base would name what is to be forgotten of their
  subject are left out.

  Args:
    config: the run's; it asks for swapped-subject prompts.
    splits: its questions.
    tokenizer: the model's.
    refer: fills in the base's states, as `batches.add_reference`.
    say: see `SayFn`.

  Returns:
    The spans, and what became of the prompts: as from `prompts`, and how many
    were `leaking` and how many are `kept`.

  Raises:
    ValueError: as `prompts`, or no prompt is left.
  """
  chosen, account = prompts(config, splits)
  ids, start = _encode(chosen, tokenizer, config.data.chat)
  tokens, real = batching.pad_sequences(ids)
  made = refer(batches_lib.make_spans(
      tokens, real & (np.arange(tokens.shape[1]) >= np.array(start)[:, None])))
  leak = _leaks(made, chosen, _answers(
      splits.forget_train, tokenizer, config.data.chat), say)
  kept = np.flatnonzero(leak < _LEAK)
  account |= {'leaking': leak.size - kept.size, 'kept': kept.size}
  logging.info('swapped-subject prompts: %s', '  '.join(
      f'{name.replace("_", " ")} {n}' for name, n in account.items()))
  if not kept.size:
    raise ValueError(
        f'Each of {len(chosen)} swapped-subject prompts leads the base to what is to be'
        ' forgotten; wanted some that do not. Give retain facts of other'
        ' relations, or --unlearn_swapped_batch=0.')
  return made.take(kept), account


def _key(subject: str) -> tuple[str, ...]:
  """The same for all writings of a subject."""
  return tuple(subjects_lib.words(subject))


def _answers(
    questions: _Questions, tokenizer: Any, chat: bool
) -> dict[tuple[str, ...], set[int]]:
  """First tokens of the answers to be forgotten, by subject."""
  found: dict[tuple[str, ...], set[int]] = {}
  for question, encoded, subject in zip(
      questions,
      tokenization.encode_questions(questions, tokenizer, chat=chat),
      subjects_lib.of_questions(questions)):
    if subject is not None:
      found.setdefault(_key(subject), set()).add(
          encoded.choices[question.answer_index][0])
  return found


def _leaks(
    made: batches_lib.Spans, chosen: Sequence[subjects_lib.Prompt],
    answers: dict[tuple[str, ...], set[int]], say: SayFn) -> np.ndarray:
  """The base's probability [n] of a forgotten answer after each prompt."""
  last = made.weight.sum(1).astype(int) - 1
  ends = made.reference[np.arange(last.size), last]  # [n, D]
  ends = np.pad(ends, ((0, -last.size % _ROWS), (0, 0)))  # One shape.
  leak = np.zeros(last.size)
  for i in range(0, last.size, _ROWS):
    said = say(ends[i:i + _ROWS])  # [_ROWS, V]
    for row, prompt in enumerate(chosen[i:i + _ROWS]):
      leak[i + row] = said[row, sorted(answers[_key(prompt.subject)])].max()
  return leak
