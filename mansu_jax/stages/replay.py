"""The base writes about the forget set's subjects; the texts are kept."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from absl import logging
import jax
import numpy as np

from mansu_jax import checkpoints
from mansu_jax import config as run_config
from mansu_jax import workdir
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import text as text_lib
from mansu_jax.data import tokenization
from mansu_jax.models import sampling
from mansu_jax.stages import inputs as inputs_lib
from mansu_jax.unlearn import replay

_LEAST = 6  # Words behind an opening that make a text worth keeping.
_ROWS = 128  # Texts written at once.


def plan(
    config: run_config.RunConfig, questions: list[questions_lib.Question]
) -> tuple[list[tuple[str, str]], dict[str, list[str]]]:
  """`(subject, opening)` of each text, and the answers to cut by subject.

  Raises:
    ValueError: no fact has a subject that its prompts share.
  """
  options = config.replay
  found = replay.subjects(
      [q.fact for q in questions], [q.prompt for q in questions])
  openings = list(replay.openings(found, options.openings, options.sequences))
  if options.sequences and not openings:
    raise ValueError(
        f'--replay_sequences={options.sequences}, but the prompts of no forget'
        ' fact share a word that could be its subject; give several phrasings'
        ' of each fact, or --replay_sequences=0.')
  answers: dict[str, list[str]] = {}
  for question in questions:
    subject = found[question.fact]
    if subject is not None:
      answers.setdefault(subject, []).append(question.answer)
  return openings, {s: sorted(set(a)) for s, a in answers.items()}


def write(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs, model: Any,
    saved: checkpoints.Stages, root: pathlib.Path
) -> list[text_lib.TextDocument]:
  """Texts about the subjects, of the kind `replay`; also in `replay.jsonl`.

  Raises:
    ValueError: as `plan`; or every text names what is to be forgotten.
  """
  if not config.replay.sequences:
    return []
  openings, answers = plan(config, inputs.splits.forget_train)
  prompts = tokenization.encode_prompts(
      [opening for _, opening in openings], model.tokenizer)
  tokens = saved.get('replay', lambda: {
      'tokens': _sample(config, model, prompts)})['tokens']
  end = getattr(model.tokenizer, 'eos_token_id', None)
  start, kept = len(tokenization.prefix_ids(model.tokenizer)), []
  for (subject, opening), prompt, row in zip(openings, prompts, tokens):
    row = row[start:len(prompt) + config.replay.tokens].tolist()
    if end in row:
      row = row[:row.index(end)]
    text = replay.cut(
        model.tokenizer.decode(row), opening, answers[subject], _LEAST)
    if text:
      kept.append({'subject': subject, 'text': text, 'kind': 'replay'})
  if not kept:
    raise ValueError(
        f'Of {len(openings)} texts that the base wrote about the forget set\'s'
        ' subjects none was left without a forgotten answer; raise'
        ' --replay_sequences or --replay_tokens, or give --replay_sequences=0.')
  logging.info('replay: %d texts about %d subjects', len(kept), len(answers))
  workdir.write_text(root / 'replay.jsonl', ''.join(
      json.dumps(line, ensure_ascii=False) + '\n' for line in kept))
  return [text_lib.TextDocument(text=line['text'], kind=line['kind'])
          for line in kept]


def _sample(
    config: run_config.RunConfig, model: Any, prompts: list[list[int]]
) -> np.ndarray:
  """Prompts continued by `--replay_tokens` tokens, [n, T] int32."""
  width = max(map(len, prompts)) + config.replay.tokens
  count = -(-len(prompts) // _ROWS)
  size = -(-len(prompts) // count)
  tokens = np.zeros((count * size, width), np.int32)
  length = np.ones(count * size, np.int32)
  for i, prompt in enumerate(prompts):
    tokens[i, :len(prompt)], length[i] = prompt, len(prompt)
  key = jax.random.key(config.seed)
  filled = [
      np.asarray(sampling.sample(
          model.config, model.params, tokens[i:i + size], length[i:i + size],
          jax.random.fold_in(key, i), config.replay.temperature))
      for i in range(0, count * size, size)]
  return np.concatenate(filled)[:len(prompts)]
