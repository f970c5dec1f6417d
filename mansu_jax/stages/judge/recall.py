"""Asks for the forgotten facts in the model's own words.

`Recaller` runs a model and returns texts; `right` and `ignorance` judge texts,
so that stored ones can be judged again. `measure` asks the base first, and then
both models, at every precision, what the base said in full precision: a
question that the base does not answer in its own words cannot show forgetting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import pathlib
from typing import NamedTuple

import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.eval import generation
from mansu_jax.eval import recall
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import files
from mansu_jax.stages.judge import answers as answers_lib
from mansu_jax.stages.judge import evaluation
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.judge import results
from mansu_jax.stages.prepare import generating
from mansu_jax.stages.prepare import inputs as inputs_lib

PLAIN, FEW_SHOT = READINGS = ('generation', 'generation_few_shot')
_CANDIDATES = 2  # Questions that the base is asked for each that is wanted.
_MORE_TOKENS = 3  # Than the longest answer, for an article or a quote.
_MOST_TOKENS = 16
# A slot of the cache takes less memory than a token of a scored batch.
_SLOTS_PER_TOKEN = 8

Texts = dict[str, list[str]]
Rows = Mapping[str, np.ndarray]  # Chosen questions [n] int by reading.


class Recalled(NamedTuple):
  """What both models wrote, and how it is judged."""

  readings: dict[str, answers_lib.Reading]
  texts: dict[tuple[str, str], Texts]  # By model and precision.


class Recaller:
  """Chooses candidates once, and asks any model of one shape.

  Attributes:
    questions: Candidates by reading.
    new_tokens: Most tokens of an answer.
  """

  def __init__(
      self, options: run_config.EvalConfig, data: run_config.DataConfig,
      inputs: inputs_lib.Inputs, model: loading.LoadedModel, *,
      seed: int = 0):
    """Chooses the questions.

    Args:
      options: Number of questions, and tokens per batch.
      data: Whether questions are asked in the chat template.
      inputs: Questions of the run.
      model: Config and tokenizer of the models.
      seed: Seed of the choice of questions and examples.
    """
    self._model, self._chat, self._seed = model, data.chat, seed
    self._most = options.recall_questions
    self._slots = _SLOTS_PER_TOKEN * options.batch_tokens
    asked = _asked(options, inputs, seed)
    pool = recall.plain(_forgotten(inputs))
    few_shot = recall.few_shot(
        asked, pool, model.tokenizer, seed=seed) if asked else []
    answers = tokenization.encode(
        [f' {q.answer.strip()}' for q in asked], model.tokenizer)
    self.new_tokens = min(
        _MOST_TOKENS, max(map(len, answers), default=0) + _MORE_TOKENS)
    few_shot = self._fitting(few_shot)
    self.questions: dict[str, list[questions_lib.Question]] = {
        PLAIN: asked, FEW_SHOT: [one.question for one in few_shot]}
    self._prompts = {
        PLAIN: [q.prompt for q in asked],
        FEW_SHOT: [one.prompt for one in few_shot]}
    # Prompts that begin alike: the phrasing, or the examples.
    self._beginnings = {
        PLAIN: [(q.form, q.relation) for q in asked],
        FEW_SHOT: [one.examples for one in few_shot]}

  def _fitting(
      self, few_shot: Sequence[recall.FewShot]) -> list[recall.FewShot]:
    """Those whose prompts fit into the model's positions."""
    if not few_shot:
      return []
    most = self._model.config.max_position
    encoded = tokenization.encode_prompts(
        [one.prompt for one in few_shot], self._model.tokenizer,
        chat=self._chat)
    return [one for one, ids in zip(few_shot, encoded)
            if most is None or len(ids) + self.new_tokens <= most]

  def __call__(
      self, params: types.Params, rows: Rows | None = None) -> Texts:
    """Answers of one model by reading, in the order of `rows`; JSON.

    Args:
      params: The model.
      rows: Candidates to ask; None asks all.
    """
    rows = self._all() if rows is None else rows
    pick = lambda items, chosen: [items[i] for i in chosen]
    return {name: generation.complete(
        self._generator, params, pick(self._prompts[name], chosen),
        self._model.tokenizer, max_new_tokens=self.new_tokens,
        stop_ids=self._model.end_tokens, chat=self._chat,
        beginnings=pick(self._beginnings[name], chosen), slots=self._slots)
            for name, chosen in rows.items() if len(chosen)}

  def _all(self) -> Rows:
    return {name: np.arange(len(questions))
            for name, questions in self.questions.items() if questions}

  def answered(self, texts: Texts) -> Rows:
    """Candidates that a model answers right, thinned evenly over facts.

    Args:
      texts: Its answers to all candidates.
    """
    out = {}
    for name, right in self.right(texts).items():
      chosen = {self.questions[name][i].id: i for i in np.flatnonzero(right)}
      kept = inputs_lib.thin(
          [self.questions[name][i] for i in chosen.values()], self._most,
          self._seed)
      out[name] = np.array([chosen[q.id] for q in kept], int)
    return out

  @functools.cached_property
  def _generator(self) -> generation.Generator:
    return generating.make(self._model.config)

  def batches(self) -> dict[str, list[generation.Batch]]:
    """The batches of each reading that has questions."""
    return {name: generation.batches(
        tokenization.encode_prompts(
            prompts, self._model.tokenizer, chat=self._chat),
        self.new_tokens, beginnings=self._beginnings[name], slots=self._slots)
            for name, prompts in self._prompts.items() if prompts}

  def right(
      self, texts: Mapping[str, Sequence[str]], rows: Rows | None = None
  ) -> dict[str, np.ndarray]:
    """Whether each answer is right, [n] bool by reading.

    Args:
      texts: Answers to the candidates `rows`.
      rows: As for `__call__`.
    """
    rows = self._all() if rows is None else rows
    return {name: np.array(
        [recall.says(text, self.questions[name][i])
         for text, i in zip(found, rows[name], strict=True)], bool)
            for name, found in texts.items()}

  def ignorance(
      self, texts: Mapping[str, Sequence[str]], rows: Rows | None = None
  ) -> dict[str, np.ndarray]:
    """How often each answer is said about other facts, [n] by reading.

    It is 0 where no other fact is asked.

    Args:
      texts: As for `right`.
      rows: As for `__call__`.
    """
    rows = self._all() if rows is None else rows
    return {name: np.nan_to_num(recall.says_for(
        found, [self.questions[name][i] for i in rows[name]]))
            for name, found in texts.items()}


def _forgotten(inputs: inputs_lib.Inputs) -> list[questions_lib.Question]:
  """All questions about forgotten facts in phrasings not trained on."""
  return [q for split in splits_lib.FORGOTTEN
          for q in inputs.splits.evaluation.get(split, ())]


def _asked(
    options: run_config.EvalConfig, inputs: inputs_lib.Inputs, seed: int
) -> list[questions_lib.Question]:
  if not options.recall_questions:
    return []
  return inputs_lib.thin(
      recall.plain(_forgotten(inputs)), _CANDIDATES * options.recall_questions,
      seed)


def measure(
    recaller: Recaller, views: quantizers.Views, base: types.Params,
    unlearned: types.Params, *, resamples: int, seed: int,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> Recalled:
  """Asks both models at every precision.

  Args:
    recaller: of the run's questions.
    views: from `Quantizers.views`.
    base: full params before unlearning.
    unlearned: full params after it.
    resamples: bootstrap resamples of the readings.
    seed: seed of the bootstrap.
    cache: keeps each model's texts for a resumed run.
  """
  if not any(recaller.questions.values()):
    return Recalled({}, {})
  keep = cache.get_or_compute_json
  said = keep('recall_base', lambda: recaller(base), of_base=True)
  rows = recaller.answered(said)
  texts = {('base', 'fp'): {
      name: [said[name][i] for i in chosen] for name, chosen in rows.items()
      if chosen.size}}
  for precision, view in views.items():
    for name, params in zip(evaluation.MODELS, (base, unlearned)):
      if (name, precision) not in texts:
        texts[name, precision] = keep(
            f'recall_{name}_{precision}', lambda: recaller(view(params), rows),
            of_base=name == 'base')
  judged = lambda judge, reading: {
      key: judge(found, rows)[reading] for key, found in texts.items()}
  return Recalled({
      reading: answers_lib.Reading(
          questions=[recaller.questions[reading][i] for i in chosen],
          correct=judged(recaller.right, reading),
          ignorance=judged(recaller.ignorance, reading),
          options=dict(resamples=resamples, seed=seed))
      for reading, chosen in rows.items() if chosen.size}, texts)


def write(recalled: Recalled, root: pathlib.Path) -> None:
  """Writes `generations.jsonl`: each model's generated answers.

  A line is {reading, id, fact, relation, prompt, answer, models}, where
  `models` is {model: {precision: {text, correct, ignorance}}}. No file is
  written without generated answers.
  """
  lines = []
  for name, reading in recalled.readings.items():
    for i, question in enumerate(reading.questions):
      models: dict[str, dict[str, object]] = {}
      for (model, precision), texts in recalled.texts.items():
        models.setdefault(model, {})[precision] = {
            'text': texts[name][i],
            'correct': bool(reading.correct[model, precision][i]),
            'ignorance': float(reading.ignorance[model, precision][i])}
      lines.append(results.line(
          {}, question, {'reading': name}, {'models': models}))
  if lines:
    files.write_text(root / 'generations.jsonl', ''.join(lines))
