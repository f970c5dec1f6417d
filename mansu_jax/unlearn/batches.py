"""Training batches as a function of the step, with reference states kept.

Reference states (the base's final hidden state, width D, at each predicted
position) are computed once for every sequence that training may see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import numpy as np

from mansu_jax.unlearn import objective

# tokens [B, T] -> the base's final hidden state [B, T, D].
HiddenFn = Callable[[np.ndarray], Any]


def make_spans(tokens: np.ndarray, mask: np.ndarray) -> objective.Spans:
  """Lists the predicted positions of each sequence, without references.

  Args:
    tokens: [n, T] int32.
    mask: [n, T] bool, True where the next token is predicted.

  Returns:
    Spans of A = the most positions that any sequence has; `reference` None.
  """
  num, width = tokens.shape[0], max(1, int(mask.sum(1).max()))
  order = np.argsort(~mask, axis=1, kind='stable')[:, :width]
  weight = np.take_along_axis(mask, order, 1)
  where = np.where(weight, order, 0).astype(np.int32)
  rows = np.arange(num)[:, None]
  labels = tokens[rows, np.minimum(where + 1, tokens.shape[1] - 1)]
  return objective.Spans(
      tokens, where, labels.astype(np.int32), weight.astype(np.float32), None)


def add_reference(
    spans: objective.Spans, hidden: HiddenFn, *, batch: int
) -> objective.Spans:
  """Fills in `reference` [n, A, D] from the base's hidden states."""
  num = spans.tokens.shape[0]
  parts = []
  for start in range(0, num, batch):
    rows = np.arange(start, start + batch) % num  # Wraps: one shape.
    states = objective.gather_hidden(
        hidden(spans.tokens[rows]), spans.where[rows])
    parts.append(np.asarray(states))
  return spans._replace(reference=np.concatenate(parts)[:num])


def take(spans: objective.Spans | None, rows: np.ndarray):
  """The sequences at `rows`; None stays None."""
  if spans is None:
    return None
  return objective.Spans(*(leaf[rows] for leaf in spans))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """Spans and the sampler that picks from them: `sampler[step]` -> rows."""

  spans: objective.Spans
  sampler: Any


def exchange_groups(
    relations: Sequence[str], templates: Sequence[str], facts: Sequence[str]
) -> list[np.ndarray]:
  """For every sequence, those of other facts it may exchange answers with.

  Same relation and template where there are such, else the same relation.

  Raises:
    ValueError: a relation has a single fact.
  """
  relations, templates, facts = map(np.asarray, (relations, templates, facts))
  out = []
  for i, relation in enumerate(relations):
    others = (relations == relation) & (facts != facts[i])
    same = others & (templates == templates[i])
    partners = np.flatnonzero(same if same.any() else others)
    if not partners.size:
      raise ValueError(
          f'--unlearn_loss=exchange needs two facts of a relation, but'
          f' {relation!r} has only {facts[i]!r}. Use --unlearn_loss=npo, or'
          ' add facts.')
    out.append(partners)
  return out


def exchange(
    spans: objective.Spans, rows: np.ndarray, partners: np.ndarray
) -> objective.Spans:
  """Prompts of `rows` continued by their partners' answers.

  The reference is the base's state at the *partner's* own prompt: trained
  towards it, the prompt's subject stops mattering and the answer keeps its
  form. In expectation over partners this is the base's distribution averaged
  over the other facts.
  """
  own, other = take(spans, rows), take(spans, partners)
  count = other.weight.sum(1).astype(int)
  start = own.where[:, 0]  # Position that predicts the first answer token.
  width = spans.weight.shape[1]
  length = int(spans.where[:, 0].max()) + width + 1  # The same every step.
  tokens = np.zeros((rows.size, length), np.int32)
  where = np.minimum(start[:, None] + np.arange(width), length - 1)
  for b in range(rows.size):
    end = start[b] + 1
    tokens[b, :end] = own.tokens[b, :end]
    tokens[b, end:end + count[b]] = other.labels[b, :count[b]]
  where = np.where(other.weight > 0, where, 0).astype(np.int32)
  return objective.Spans(
      tokens, where, other.labels, other.weight, other.reference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
  """`batches(step)` -> `objective.Batch`; needs no history.

  Attributes:
    forget: forget sequences.
    retain: retain fact sequences.
    text: general text windows, or None.
    prompts: spans over the forget prompts' own tokens, in the order of
      `forget`, or None.
    partners: from `exchange_groups`, or None when answers stay.
    seed: of the choice of partners.
  """

  forget: Pool
  retain: Pool
  text: Pool | None = None
  prompts: objective.Spans | None = None
  partners: list[np.ndarray] | None = None
  seed: int = 0

  def __call__(self, step: int) -> objective.Batch:
    rows = self.forget.sampler[step]
    exchanged = None
    if self.partners is not None:
      rng = np.random.default_rng((self.seed, step))
      chosen = np.array([rng.choice(self.partners[r]) for r in rows])
      exchanged = exchange(self.forget.spans, rows, chosen)
    return objective.Batch(
        forget=take(self.forget.spans, rows),
        exchanged=exchanged,
        prompts=take(self.prompts, rows),
        retain=take(self.retain.spans, self.retain.sampler[step]),
        text=None if self.text is None else take(
            self.text.spans, self.text.sampler[step]))
