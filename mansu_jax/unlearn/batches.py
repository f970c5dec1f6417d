"""Packed training batches as a function of the step.

Facts are short, so the sequences of a step share rows, which leaves little
padding; a token attends to its own sequence only. Reference states (the base's
final hidden state, width D, at each predicted position) are computed once for
every sequence in the pools.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mansu_jax.data import packing
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding
from mansu_jax.unlearn import step_data

_NEIGHBOURS = 20  # Forget sequences that a retain sequence is compared with.
ROW = 64  # Tokens a row; longer sequences make longer rows.

# (tokens, positions, segments), each [R, T] -> the base's hidden [R, T, D].
HiddenFn = Callable[[np.ndarray, np.ndarray, np.ndarray], Any]


class Spans(NamedTuple):
  """Right-padded sequences, one per row; leading axis n."""

  tokens: np.ndarray  # [n, T] int32
  length: np.ndarray  # [n] int32, tokens that are inputs
  where: np.ndarray  # [n, A] int32, positions whose next token is predicted
  labels: np.ndarray  # [n, A] int32
  weight: np.ndarray  # [n, A] float32, 0 on padding
  reference: np.ndarray | None  # [n, A, D] the base's final hidden state

  def take(self, rows: np.ndarray) -> Spans:
    """The sequences at `rows`."""
    return Spans(*(None if x is None else x[rows] for x in self))


def join(parts: Sequence[Spans]) -> Spans:
  """Concatenates sequences, padded to one length."""
  def stack(arrays):
    if arrays[0] is None or arrays[0].ndim == 1:
      return None if arrays[0] is None else np.concatenate(arrays)
    width = max(x.shape[1] for x in arrays)
    return np.concatenate([
        np.pad(x, [(0, 0), (0, width - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
        for x in arrays])

  return Spans(*map(stack, zip(*parts)))


def make_spans(tokens: np.ndarray, mask: np.ndarray) -> Spans:
  """Lists the predicted positions of each sequence, without references.

  Tokens after the last predicted position are no inputs and are cut off.

  Args:
    tokens: [n, T] int32.
    mask: [n, T] bool, True where the next token is predicted.
  """
  num, width = tokens.shape[0], max(1, int(mask.sum(1).max()))
  order = np.argsort(~mask, axis=1, kind='stable')[:, :width]
  weight = np.take_along_axis(mask, order, 1)
  where = np.where(weight, order, 0).astype(np.int32)
  rows = np.arange(num)[:, None]
  labels = tokens[rows, np.minimum(where + 1, tokens.shape[1] - 1)]
  length = where.max(1) + 1
  return Spans(
      tokens[:, :length.max()], length, where, labels.astype(np.int32),
      weight.astype(np.float32), None)


def pack(
    groups: Sequence[Spans], fill: packing.FillRows = packing.fill_rows,
    rows: int | None = None,
    capacity: int = ROW) -> tuple[step_data.Packed, list[np.ndarray]]:
  """Packs the sequences of all groups into shared rows.

  Args:
    groups: Sequences, packed together.
    fill: Assigns sequences to rows.
    rows: Number of rows; None: as many as the sequences need.
    capacity: Tokens per row, raised to the longest sequence's length.

  Returns:
    The rows, and for each group the start of each sequence in the flattened
    rows, [n].

  Raises:
    ValueError: the sequences do not fit into `rows`.
  """
  lengths = np.concatenate([g.length for g in groups])
  capacity = max(capacity, int(lengths.max()))
  filled = fill(lengths.tolist(), capacity)
  layout = packing.lay_out(lengths, filled, (rows or len(filled), capacity))
  starts = np.zeros(lengths.size, np.int64)
  starts[layout.members] = layout.starts
  ends = np.cumsum([g.length.size for g in groups])[:-1]
  packed = step_data.Packed(
      tokens=layout.write([tokens for g in groups for tokens in g.tokens]),
      positions=layout.positions(), segments=layout.segment_ids())
  return packed, np.split(starts, ends)


def targets(
    spans: Spans, starts: np.ndarray, size: int | None = None
) -> step_data.Targets:
  """The targets of B sequences, as positions in the flattened rows.

  Args:
    spans: B sequences, each with a predicted position.
    starts: start of each sequence in the flattened rows, [B].
    size: number of positions to pad to.
  """
  row, column = np.nonzero(spans.weight)
  padding = (0, (size or row.size) - row.size)
  padded = lambda values: np.pad(np.int32(values), padding)
  at = lambda leaf: leaf[row, column]
  return step_data.Targets(
      where=padded(starts[row] + at(spans.where)),
      labels=padded(at(spans.labels)),
      weight=np.pad(at(spans.weight), padding),
      reference=np.pad(at(spans.reference), (padding, (0, 0))),
      sequence=padded(row),
      first=np.int32(np.searchsorted(row, np.arange(len(starts)))))


def _positions(spans: Spans | None) -> int:
  return 0 if spans is None else np.count_nonzero(spans.weight)


def add_reference(
    spans: Spans, hidden: HiddenFn,
    fill: packing.FillRows = packing.fill_rows, *, batch_rows: int = 16
) -> Spans:
  """Fills in `reference` [n, A, D] from the base's hidden states."""
  batch_rows = sharding.round_up_rows(batch_rows)
  packed, (starts,) = pack([spans], fill)
  pad = -packed.tokens.shape[0] % batch_rows
  packed = [np.pad(x, ((0, pad), (0, 0))) for x in packed]
  flat = []
  progress.count_tokens(spans.length.sum())
  for r in progress.track(
      range(0, packed[0].shape[0], batch_rows), 'reference states'):
    states = sharding.to_host(
        hidden(*(x[r:r + batch_rows] for x in packed)))
    flat.append(states.reshape(-1, states.shape[-1]))
  positions = np.where(spans.weight > 0, starts[:, None] + spans.where, 0)
  return spans._replace(reference=np.concatenate(flat)[positions])


def nearest(
    retain: np.ndarray, forget: np.ndarray, count: int) -> np.ndarray:
  """The retain sequences nearest to the forget set, by their base states.

  A sequence's score is the mean cosine between its centred base state at the
  end of the prompt and those of its 20 nearest forget sequences. For capitals
  of countries, capitals of states and languages and landmarks of countries
  score highest.

  Args:
    retain: base states [n, D].
    forget: base states [m, D].
    count: number of sequences; at least one is returned.

  Returns:
    Rows [k] of `retain`, nearest first.
  """
  centre = np.concatenate([retain, forget]).mean(0)

  def directions(states):
    states = np.float64(states) - centre
    norms = np.linalg.norm(states, axis=1, keepdims=True)
    return states / np.maximum(norms, 1e-12)

  cosines = directions(retain) @ directions(forget).T  # [n, m]
  neighbours = min(_NEIGHBOURS, cosines.shape[1])
  score = np.partition(cosines, -neighbours, axis=1)[:, -neighbours:].mean(1)
  return np.argsort(-score, kind='stable')[:max(1, count)]


def swap_answers(own: Spans, other: Spans) -> Spans:
  """Prompts of `own` continued by the answers of `other`.

  The reference is the base's state at the prompt of `other`. Trained towards
  it, the model ignores the prompt's subject and keeps the form of the answer.
  In expectation over partners, the target is the base's distribution averaged
  over the other facts.
  """
  count = other.weight.sum(1).astype(int)
  start = own.where[:, 0]  # Position that predicts the first answer token.
  width = own.tokens.shape[1] + other.weight.shape[1]
  tokens = np.zeros((count.size, width), np.int32)
  for b, (first, size) in enumerate(zip(start + 1, count)):
    tokens[b, :first] = own.tokens[b, :first]
    tokens[b, first:first + size - 1] = other.labels[b, :size - 1]
  where = start[:, None] + np.arange(other.weight.shape[1])
  where = np.where(other.weight > 0, where, 0).astype(np.int32)
  return other._replace(
      tokens=tokens, length=where.max(1) + 1, where=where)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """Sequences and their sampler, `sampler[step] -> rows`.

  The first `even` spans sample the set evenly; the others are additional
  neighbours of the forget set.
  """

  spans: Spans
  sampler: Any
  even: int


class Batches:
  """`batches(step) -> step_data.Batch`, independent of earlier steps.

  All batches have one shape, so that one program serves every step.

  Args:
    forget: forget sequences.
    retain: retain fact sequences.
    text: general text windows, or None.
    swapped: retain phrasings about the forget set's subjects, or None.
    swapped_report: the record's `swapped_prompts`.
    prompts: spans over the forget prompts' own tokens, in the order of
      `forget`, or None.
    partners: from `other_facts.swap_partners`; None keeps the own answers.
    marginals: from `other_facts.group_marginals`, for the loss
      `group_marginal`, or None.
    choices: from `other_facts.choice_targets`, or None.
    prior: of the n forget sequences, or None.
    refusals: the forget prompts with refusals as answers, in the order of
      `forget`, or None.
    routed: whether the forget sequences have rows of their own, the first, to
      run them again.
    questions: what the forget sequences ask, in their order, or None.
    fill: assigns sequences to rows.
    steps: number of steps that fix the common shape.
    seed: of the choice of partners.
  """

  def __init__(
      self, *, forget: Pool, retain: Pool, text: Pool | None = None,
      swapped: Pool | None = None,
      swapped_report: dict[str, int] | None = None,
      prompts: Spans | None = None,
      partners: list[np.ndarray] | None = None,
      marginals: tuple[np.ndarray, np.ndarray] | None = None,
      choices: step_data.Choices | None = None,
      prior: step_data.OtherPrompts | None = None,
      refusals: Spans | None = None, routed: bool = False,
      questions: Sequence[Any] | None = None,
      fill: packing.FillRows = packing.fill_rows, steps: int, seed: int = 0):
    self.forget, self.retain = forget, retain
    self.text, self.swapped = text, swapped
    self.swapped_report, self.questions = swapped_report, questions
    self._prompts, self._partners = prompts, partners
    self._marginals, self._choices, self._prior = marginals, choices, prior
    self._refusals = refusals
    self._fill, self._seed = fill, seed
    lengths, sizes = [], []
    for step in range(steps):
      groups, prompts = self._groups(step)
      lengths.append(np.concatenate([g.length for g in groups]).tolist())
      sizes.append([_positions(g) for g in (*groups, prompts)])
    self._capacity = max(ROW, *map(max, lengths))
    most = lambda lengths: sharding.round_up_rows(
        max(len(fill(some, self._capacity)) for some in lengths))
    count, self._own_rows = self.forget.sampler.batch, 0
    if routed:
      self._own_rows = most([some[:count] for some in lengths])
      lengths = [some[count:] for some in lengths]
    self._rows = self._own_rows + most(lengths)
    self._sizes = np.max(sizes, axis=0).tolist()  # One shape for all steps.

  def _groups(self, step: int) -> tuple[list[Spans], Spans | None]:
    rows = self.forget.sampler[step]
    forget = self.forget.spans.take(rows)
    if self._partners is not None:
      rng = np.random.default_rng((self._seed, step))
      chosen = np.array([rng.choice(self._partners[r]) for r in rows])
      forget = swap_answers(forget, self.forget.spans.take(chosen))
    groups = [forget]
    groups += [pool.spans.take(pool.sampler[step])
               for pool in (self.retain, self.text, self.swapped)
               if pool is not None]
    if self._refusals is not None:
      groups.append(self._refusals.take(rows))
    prompts = None if self._prompts is None else self._prompts.take(rows)
    return groups, prompts

  def __call__(self, step: int) -> step_data.Batch:
    groups, prompts = self._groups(step)
    rows, marginal, others = self.forget.sampler[step], None, None
    if self._marginals is not None:
      table, row = self._marginals
      marginal = table[row[rows]]
    if self._choices is not None:
      others = step_data.Choices(*(x[rows] for x in self._choices))
    packed, starts = self._pack(groups)
    progress.count_tokens(sum(int(g.length.sum()) for g in groups))
    forget, retain, *rest = map(targets, groups, starts, self._sizes)
    next_or_none = lambda pool: None if pool is None else rest.pop(0)
    return step_data.Batch(
        packed=packed, forget=forget, retain=retain,
        text=next_or_none(self.text), swapped=next_or_none(self.swapped),
        prompts=None if prompts is None else targets(
            prompts, starts[0], self._sizes[-1]),
        group_marginal=marginal, choices=others,
        prior=self._prior and step_data.OtherPrompts(
            *(x[rows] for x in self._prior)),
        refusals=next_or_none(self._refusals),
        routed=np.arange(self._own_rows) if self._own_rows else None)

  def _pack(
      self, groups: list[Spans]) -> tuple[step_data.Packed, list[np.ndarray]]:
    own = self._own_rows
    if not own:
      return pack(groups, self._fill, self._rows, self._capacity)
    first, (starts,) = pack(groups[:1], self._fill, own, self._capacity)
    rest, others = pack(
        groups[1:], self._fill, self._rows - own, self._capacity)
    packed = step_data.Packed(*map(np.concatenate, zip(first, rest)))
    return packed, [starts, *(x + first.tokens.size for x in others)]
