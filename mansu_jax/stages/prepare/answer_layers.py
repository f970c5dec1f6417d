"""The layer of a run's base that moves the answer, and the layers to edit.

Knowledge of a subject is gathered at the subject's tokens over the layers below
the mover layer, which reads it. An edit above that layer can only hide what was
read; see `erasure.mover_layer`.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
import dataclasses
from typing import Any

from absl import logging
import numpy as np

from mansu_jax import types
from mansu_jax.circuits import select
from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.erasure import mover_layer
from mansu_jax.erasure import spans
from mansu_jax.models.io import loading
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import programs
from mansu_jax.stages.prepare import abstract
from mansu_jax.stages.prepare import inputs as inputs_lib

QUESTIONS = 32  # In training phrasings.
LEAST = 8  # Fewer questions say nothing.
_SHARE = 3  # The layers to edit are one in so many.
_USUAL = 0.75  # Depth of the mover layer where none is found.


class TooFew(ValueError):
  """Too few questions have a partner; the message says what was wanted."""


def draw(
    questions: Sequence[questions_lib.Question], what: str,
    tokenizer: types.Tokenizer, *, limit: int, others: int, seed: int,
    chat: bool) -> spans.Questions:
  """Draws questions with partners evenly over facts.

  Args:
    questions: to draw from.
    what: their name in the error.
    tokenizer: the model's tokenizer.
    limit: largest number of questions.
    others: other facts of each question.
    seed: seed of the draw and of the partners.
    chat: whether prompts take the tokenizer's chat form.

  Raises:
    TooFew: fewer than `LEAST` are left.
  """
  rng, found = np.random.default_rng(seed), None
  if questions:
    phrasings = spans.Phrasings(questions, tokenizer, chat=chat)
    chosen = inputs_lib.thin(phrasings.usable, limit, seed)
    if len(chosen) < len(phrasings.usable):
      chosen = phrasings.with_partners(chosen, limit, rng)
    found = phrasings.take(chosen, others=others, rng=rng)
  if found is None or len(found) < LEAST:
    raise TooFew(
        f'{len(found or ())} of {len(questions)} {what} have choices that'
        ' differ in their first tokens and a partner: another fact in the same'
        f' phrasing with as many tokens; wanted at least {LEAST}')
  return found


def usual(num_layers: int) -> int:
  """The layer that a run takes for the mover layer where none is found."""
  return int(_USUAL * num_layers)


def draw_train(
    role: str, questions: Sequence[questions_lib.Question],
    tokenizer: types.Tokenizer, *, seed: int, chat: bool) -> spans.Questions:
  """The train questions of a role that show the mover layer; as `draw`."""
  return draw(questions, f'{role} questions (use train)', tokenizer,
              limit=QUESTIONS, others=1, seed=seed, chat=chat)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """The mover layer and how it was found.

  Attributes:
    mover: how it was found; None if it was not.
    source: `forget` or `retain`, the set that shows it; or the reason why none
      does.
  """

  mover: mover_layer.Mover | None
  source: str

  @property
  def layer(self) -> int | None:
    """The mover layer, or None."""
    return self.mover and self.mover.layer

  def layers(self, num_layers: int) -> tuple[int, int]:
    """First and last layer to edit: a third of the layers, up to the mover."""
    last = usual(num_layers) if self.mover is None else self.mover.layer
    return max(0, last - num_layers // _SHARE), last

  def record(
      self, circuit: run_config.CircuitConfig, num_layers: int
  ) -> dict[str, Any]:
    """The record's `circuit.layers`.

    Args:
      circuit: options with the layers of the run, from `resolve`.
      num_layers: layers of the model.
    """
    layers = select.layer_range(circuit, num_layers)
    return {'first': layers[0], 'last': layers[-1], 'mover_layer': self.layer,
            'source': self.source,
            'by_layer': self.mover.removed if self.mover else []}


UNKNOWN = Found(mover=None, source='not searched')


def find(
    splits: splits_lib.Splits, model: loading.LoadedModel, *, seed: int,
    chat: bool, cache: checkpoints.NoCache = checkpoints.NoCache()) -> Found:
  """Finds the mover layer from training questions alone.

  Those of the forget set show it, or else those of the retain set.

  Args:
    splits: questions to train on.
    model: the base.
    seed: seed of the draw.
    chat: whether prompts take the tokenizer's chat form.
    cache: keeps the result for a resumed run.
  """
  def look(name, questions):
    mover = mover_layer.find(model.config, model.params, draw_train(
        name, questions, model.tokenizer, seed=seed, chat=chat))
    return {'mover': mover._asdict(), 'source': name}

  def make():
    reasons = []
    for name, questions in (
        ('forget', splits.forget_train), ('retain', splits.retain_train)):
      try:
        return look(name, questions)
      except (TooFew, mover_layer.NoLead) as error:
        reasons.append(str(error))
    return {'mover': None, 'source': '; '.join(reasons)}

  found = cache.get_or_compute_json('mover_layer', make, of_base=True)
  if found['mover'] is None:
    logging.warning('The mover layer was not found: %s.', found['source'])
    return Found(mover=None, source=found['source'])
  return Found(mover=mover_layer.Mover(**found['mover']),
               source=found['source'])


def is_needed(config: run_config.RunConfig) -> bool:
  """Whether the run's circuit or forget term depends on the mover layer."""
  circuit = config.circuit
  is_open = circuit.first_layer is None or circuit.last_layer is None
  return circuit.selection != 'all' and bool(
      is_open or config.unlearn.routed)


def resolve(
    circuit: run_config.CircuitConfig, found: Found, num_layers: int
) -> run_config.CircuitConfig:
  """The circuit's options with the layers that were left open."""
  first, last = found.layers(num_layers)
  if circuit.last_layer is None:
    circuit = dataclasses.replace(circuit, last_layer=last)
  if circuit.first_layer is None:
    upper = circuit.last_layer % num_layers
    circuit = dataclasses.replace(circuit, first_layer=max(
        0, upper - (last - first)))
  return circuit


def plan(
    splits: splits_lib.Splits, model: abstract.AbstractModel, *, seed: int,
    chat: bool) -> programs.Programs:
  """The programs of `find`, on the forget set."""
  yield programs.hold(base=model.params)
  try:
    questions = draw_train(
        'forget', splits.forget_train, model.tokenizer, seed=seed, chat=chat)
  except TooFew:
    return
  yield from programs_of(model, questions)


def programs_of(
    model: abstract.AbstractModel, questions: spans.Questions
) -> programs.Programs:
  """The programs of `mover_layer.find`."""
  for calls, rows, source in shapes_of(questions):
    yield programs.program(
        'mover_layer.logits_by_layer', mover_layer.logits_by_layer,
        model.config, model.params, rows, source, calls=calls)


def shapes_of(
    questions: spans.Questions) -> Iterator[tuple[int, spans.Rows, Any]]:
  """Number of batches, rows and sources of each width."""
  batches = spans.batches_of(questions)
  count = collections.Counter(b.rows.tokens.shape for b in batches)
  for batch in {b.rows.tokens.shape: b for b in batches}.values():
    yield (count[batch.rows.tokens.shape], programs.shapes_of(batch.rows),
           programs.shapes_of(batch.others[0]))
