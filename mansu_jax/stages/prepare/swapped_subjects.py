"""Prompts that swap the subjects of the forget and the retain set.

Some ask about the forget set's subjects, but not the forget facts, in phrasings
of the retain set or in open ones, which fit any subject. Others ask about
subjects and answers of the retain set, in phrasings of the forget set or in
open ones. `prompts` draws them, `check` tests that the model can read them, and
`spans` lets the base continue the open ones about forgotten subjects and adds
its hidden states for training. The subject of a fact is the words that all of
its prompts share.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import itertools

from absl import logging
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import subjects as subjects_lib
from mansu_jax.data import tokenization
from mansu_jax.stages.prepare import forget_answers
from mansu_jax.unlearn import batches as batches_lib

# Token ids of prompts, n -> the base's next tokens of each, at most n.
WriteFn = Callable[[Sequence[Sequence[int]], int], list[list[int]]]

_Questions = Sequence[questions_lib.Question]
_MAX_LEAK = 0.01  # Largest probability of a forget answer after a prompt.
_CANDIDATES = 2  # Prompts to draw for each one about a retained subject.
# Text before and after a subject of any kind. They keep what no retain relation
# asks about.
_OPEN_TEMPLATES = (
    ('', ' is'), ('', ' has'), ('', ' belongs to'), ('', ' is part of'),
    ('', ' is a kind of'), ('', ' is known for'), ('', ' is similar to'),
    ('What is ', '? It is'), ('Where is ', '? It is in'),
    ('Who knows ', '? Mostly'), ('When was ', ' first mentioned? In'),
    ('An encyclopedia describes ', ' as'), ('People think of ', ' as'),
    ('In short, ', ' means'), ('Some facts about ', ':'),
    ('The first thing to know about ', ' is that'), ('', ' comes from'),
    ('', ', also called'), ('', ' was once'), ('She told us about ', '. It'),
    ('Compared with others, ', ' is'),
    ('Most of what is written about ', ' says that'),
    ('', ' belongs to the same group as'), ('Between ', ' and'))


def prompts(
    options: run_config.UnlearnConfig, splits: splits_lib.Splits, seed: int
) -> tuple[list[subjects_lib.Prompt], dict[str, int]]:
  """Draws at most `--unlearn_swapped_pool` prompts about forget subjects.

  At most `--unlearn_swapped_open_share` of that number are in open phrasings.
  All relations of the retain set contribute equally to the others, as long as
  they have prompts. Twice `--unlearn_swapped_other_share` of that number are
  added, about retained subjects and answers, which all relations contribute
  equally; `spans` keeps half of them. Prompts that are also questions of the
  forget set or of the evaluation are skipped: training must not preserve the
  former or use the latter.

  Args:
    options: Configuration of the loop.
    splits: Questions of the run.
    seed: Seed of the draw.

  Returns:
    The prompts, and the counts `subjects` (of the forget set),
    `facts_without_subject` and `asked_elsewhere` (skipped prompts). There are
    no prompts if those of the forget facts share no word; without open ones,
    also if those of the retain facts share none, or if all are skipped.
  """
  if not options.swapped_batch:
    return [], {}
  found = subjects_lib.of_questions(splits.forget_train)
  subjects = list(dict.fromkeys(s for s in found if s is not None))
  rng = np.random.default_rng(seed)
  shuffled = lambda templates: _shuffled_prompts(templates, subjects, rng)
  num_open = round(options.swapped_open_share * options.swapped_pool)
  asked = _asked(splits)
  chosen, skipped = _draw(
      _in_turn(map(shuffled, _templates(splits.retain_train))), asked,
      options.swapped_pool - num_open)
  opened, skipped_open = _draw(shuffled(_OPEN_TEMPLATES), asked, num_open)
  others = _other_subjects(
      splits.retain_train, {*map(forget_answers.key, subjects)}
  ) if chosen or opened else []
  groups = (*_templates(splits.forget_train), _OPEN_TEMPLATES)
  turned, skipped_turned = _draw(
      _in_turn(_shuffled_prompts(templates, some, rng)
               for some in others for templates in groups),
      asked, _CANDIDATES * _num_others(options))
  return chosen + opened + turned, {
      'subjects': len(subjects),
      'asked_elsewhere': skipped + skipped_open + skipped_turned,
      'facts_without_subject': len({
          q.fact for q, s in zip(splits.forget_train, found) if s is None})}


def _num_others(options: run_config.UnlearnConfig) -> int:
  """Number of prompts about retained subjects."""
  return round(options.swapped_other_share * options.swapped_pool)


def _other_subjects(
    questions: _Questions, forgotten: set[tuple[str, ...]]
) -> list[list[str]]:
  """Subjects, and answers, of each relation of the retain set."""
  found: dict[tuple[str, str], dict[str, None]] = {}
  for question, subject in zip(questions, subjects_lib.of_questions(questions)):
    for kind, name in (('subject', subject), ('answer', question.answer)):
      if name is not None and forget_answers.key(name) not in forgotten:
        found.setdefault((question.asked, kind), {}).setdefault(name)
  return [list(names) for names in found.values()]


def _draw(
    candidates: Iterable[subjects_lib.Prompt], asked: set[str], limit: int
) -> tuple[list[subjects_lib.Prompt], int]:
  """The first distinct prompts but those `asked`; and how many these were."""
  chosen: dict[str, subjects_lib.Prompt] = {}
  skipped = 0
  for prompt in candidates:
    if len(chosen) == limit:
      break
    if splits_lib.plain(prompt.text) in asked:
      skipped += 1
    else:
      chosen.setdefault(prompt.text, prompt)
  return list(chosen.values()), skipped


def _in_turn(
    groups: Iterable[Iterator[subjects_lib.Prompt]]
) -> Iterator[subjects_lib.Prompt]:
  """Yields one of each group in turn, as long as it has any."""
  turns = collections.deque(groups)
  while turns:
    found = next(turns[0], None)
    if found is None:
      turns.popleft()
    else:
      turns.rotate(-1)
      yield found


def _asked(splits: splits_lib.Splits) -> set[str]:
  """The prompts of the forget set and of the evaluation."""
  evaluated = (q for qs in splits.evaluation.values() for q in qs)
  return {splits_lib.plain(q.prompt)
          for q in (*splits.forget_train, *evaluated)}


def _templates(questions: _Questions) -> list[list[tuple[str, ...]]]:
  """The templates of each relation that has any."""
  groups: dict[str, list[tuple[str, str | None]]] = {}
  subjects = subjects_lib.of_questions(questions)
  for question, subject in zip(questions, subjects):
    groups.setdefault(question.asked, []).append((question.prompt, subject))
  found = [subjects_lib.templates(*zip(*group)) for group in groups.values()]
  return [templates for templates in found if templates]


def _shuffled_prompts(
    templates: Sequence[tuple[str, ...]], subjects: Sequence[str],
    rng: np.random.Generator) -> Iterator[subjects_lib.Prompt]:
  """Yields each template with each subject, in random order."""
  order = rng.permutation(len(templates) * len(subjects))
  for i in order:
    yield subjects_lib.ask(
        templates[i // len(subjects)], subjects[i % len(subjects)])


def check(
    options: run_config.UnlearnConfig, splits: splits_lib.Splits,
    tokenizer: types.Tokenizer, max_position: int, *, seed: int, chat: bool
) -> None:
  """Raises ValueError if a prompt is too long, and warns if there are none.

  Args:
    options: Configuration of the loop.
    splits: Questions of the run.
    tokenizer: Tokenizer of the model.
    max_position: Largest number of tokens that the model can read.
    seed: Seed of the run.
    chat: Whether the chat template applies.
  """
  if not options.swapped_batch:
    return
  chosen, counts = prompts(options, splits, seed)
  if not chosen:
    _warn_of_none(_why_none(counts))
  encoded, _ = _encode(chosen, tokenizer, chat)
  for prompt, ids in zip(chosen, encoded):
    more = options.swapped_continuation if _is_open(prompt) else 0
    if len(ids) + more > max_position:
      raise ValueError(
          f'The swapped-subject prompt {prompt.text!r} has {len(ids)} tokens'
          + (f' and --unlearn_swapped_continuation={more} more' if more else '')
          + f'; wanted at most {max_position}, the positions of the model.'
          ' Shorten the retain prompts, or give --unlearn_swapped_batch=0.')


def _warn_of_none(reason: str) -> None:
  logging.warning(
      'Training has no swapped-subject prompts about forgotten subjects, so'
      ' that other facts about these are not preserved: %s.', reason)


def _why_none(counts: dict[str, int]) -> str:
  if counts['asked_elsewhere']:
    return ('each is a question of the forget set or of the evaluation; add'
            ' retain facts of other relations, or raise'
            ' --unlearn_swapped_open_share')
  which = 'retain' if counts['subjects'] else 'forget'
  return (f'the prompts of a {which} fact share no word that could be its'
          ' subject; add phrasings of each fact')


def _encode(
    chosen: Sequence[subjects_lib.Prompt], tokenizer: types.Tokenizer,
    chat: bool
) -> tuple[list[list[int]], list[int]]:
  """Token ids of each prompt, and the number of tokens before its subject."""
  texts = [p.text for p in chosen]
  return (tokenization.encode_prompts(texts, tokenizer, chat=chat),
          tokenization.tokens_before(
              texts, [p.start for p in chosen], tokenizer, chat=chat))


def spans(
    options: run_config.UnlearnConfig, data: run_config.DataConfig,
    splits: splits_lib.Splits, tokenizer: types.Tokenizer,
    refer: Callable[[batches_lib.Spans], batches_lib.Spans],
    next_token: forget_answers.NextTokenFn, write: WriteFn, *, seed: int
) -> tuple[batches_lib.Spans | None, list[questions_lib.Question],
           dict[str, int]]:
  """Swapped-subject prompts with the base's states from the subject on.

  A prompt that the base completes with a forget answer of its subject asks for
  that fact. It is dropped or, with `--unlearn_forget_leaks`, becomes a forget
  question. The base continues the other open prompts about forget subjects, and
  nothing is preserved where it is likely to say such an answer. Of the prompts
  about retained subjects those are kept after which the base is most likely to
  say some forget answer: facts like the forgotten ones, which unlearning harms
  first.

  Args:
    options: Configuration of the loop, with swapped-subject prompts.
    data: Configuration of the data.
    splits: Questions of the run.
    tokenizer: Tokenizer of the model.
    refer: Adds the base's states, as `batches.add_reference`.
    next_token: The base's next-token probabilities.
    write: Continues prompts as the base does.
    seed: Seed of the run.

  Returns:
    The spans, or None if no prompt is left; the forget questions; and the
    counts of `prompts` with `leaking` (prompts that are not retained),
    `forgotten` (those among them that became forget questions), `kept`,
    `about_retained` (kept ones about retained subjects), and `written` (tokens
    that the base wrote and training preserves).
  """
  chosen, counts = prompts(options, splits, seed)
  if not chosen:
    return None, [], counts | dict.fromkeys(
        ('leaking', 'forgotten', 'kept', 'about_retained', 'written'), 0)
  forgotten = forget_answers.ForgetAnswers(
      splits.forget_train, tokenizer, next_token, chat=data.chat)
  ids, start = _encode(chosen, tokenizer, data.chat)
  last = np.array([len(x) for x in ids]) - np.array(start) - 1
  ids = _continued(ids, chosen, forgotten, write, options.swapped_continuation)
  tokens, real = batching.pad_sequences(ids)
  made = refer(batches_lib.make_spans(
      tokens, real & (np.arange(tokens.shape[1]) >= np.array(start)[:, None])))
  written = np.arange(made.weight.shape[1]) > last[:, None]
  row, column = np.nonzero(made.weight * written)
  likely, _ = forgotten.likeliest(
      made.reference[row, column], [chosen[i].subject for i in row])
  made.weight[row, column] *= likely < _MAX_LEAK
  likely, facts = forgotten.likeliest(
      made.reference[np.arange(last.size), last], [p.subject for p in chosen])
  own = np.array([fact is not None for fact in facts])
  leaking = np.flatnonzero(own & (likely >= _MAX_LEAK))
  others = np.flatnonzero(~own)
  others = others[np.argsort(-likely[others], kind='stable')]
  others = others[:_num_others(options)]
  about_own = np.flatnonzero(own & (likely < _MAX_LEAK))
  kept = np.sort(np.concatenate([about_own, others]))
  found = _as_questions([(chosen[i], facts[i]) for i in leaking]
                        if options.forget_leaks else [])
  counts |= {'leaking': leaking.size, 'forgotten': len(found),
             'kept': kept.size, 'about_retained': others.size,
             'written': int((made.weight * written)[kept].sum())}
  logging.info('swapped-subject prompts: %s', '  '.join(
      f'{name.replace("_", " ")} {n}' for name, n in counts.items()))
  if not about_own.size:
    _warn_of_none(
        f'the base completes each of the {own.sum()} prompts with a forget'
        ' answer; add retain facts of other relations')
  return made.take(kept) if kept.size else None, found, counts


def _is_open(prompt: subjects_lib.Prompt) -> bool:
  return _phrasing(prompt) in _OPEN_TEMPLATES


def _phrasing(prompt: subjects_lib.Prompt) -> tuple[str, str]:
  """The text before and after the subject."""
  end = prompt.start + len(prompt.subject)
  return prompt.text[:prompt.start], prompt.text[end:]


def _continued(
    ids: Sequence[list[int]], chosen: Sequence[subjects_lib.Prompt],
    forgotten: forget_answers.ForgetAnswers, write: WriteFn, most: int
) -> list[list[int]]:
  """Prompts, the open ones about forget subjects with what the base writes.

  It ends where the base writes the first token of an answer of the subject.

  Args:
    ids: Token ids of the prompts.
    chosen: The prompts.
    forgotten: The forget answers.
    write: Continues prompts as the base does.
    most: Largest number of tokens to write.
  """
  out = list(map(list, ids))
  rows = [i for i, prompt in enumerate(chosen)
          if forgotten.of(prompt.subject) and _is_open(prompt)]
  if not most or not rows:
    return out
  for i, new in zip(rows, write([out[i] for i in rows], most)):
    own = forgotten.of(chosen[i].subject)
    out[i] += itertools.takewhile(lambda token, own=own: token not in own, new)
  return out


def _as_questions(
    found: Sequence[tuple[subjects_lib.Prompt, questions_lib.Question]]
) -> list[questions_lib.Question]:
  """The prompts as forget questions about facts; one form per phrasing."""
  forms: dict[tuple[str, str], int] = {}
  questions = []
  for prompt, question in found:
    number = forms.setdefault(_phrasing(prompt), len(forms))
    questions.append(dataclasses.replace(
        question, id=f'{question.fact}/swapped_{number}', prompt=prompt.text))
  return questions
