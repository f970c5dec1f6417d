"""The data of one step of training: B sequences in packed rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp

from mansu_jax import types
from mansu_jax.unlearn import losses


class Packed(NamedTuple):
  """Rows that hold several sequences each."""

  tokens: types.Array  # [R, T] int32
  positions: types.Array  # [R, T] int32, within the sequence
  segments: types.Array  # [R, T] int32, which sequence; -1 on padding


class Targets(NamedTuple):
  """The P predicted positions of B sequences, sequence after sequence.

  They are not padded to the longest sequence: the logits of a position cost as
  much as a quarter of the layers do for a token.
  """

  where: types.Array  # [P] int32, positions in the flattened rows
  labels: types.Array  # [P] int32, the token that follows each
  weight: types.Array  # [P] float32, 0 on padding, which is at the end
  reference: types.Array  # [P, D] the base's final hidden state
  sequence: types.Array  # [P] int32, the sequence of each position
  first: types.Array  # [B] int32, each sequence's first index, 0 .. P - 1


class Choices(NamedTuple):
  """Answers at the end of each forget prompt, by first tokens."""

  tokens: types.Array  # [B, K] int32, the right answer's and the others'
  target: types.Array  # [B, K] float32 probabilities, 0 for the right answer
  valid: types.Array  # [B, K] bool, False on padding


class OtherPrompts(NamedTuple):
  """What the base says after prompts of other facts, for each forget prompt."""

  nll: types.Array  # [B], mean NLL of the forget answer there, nats
  states: types.Array  # [B, K, D], its state at the ends of these prompts
  relation: types.Array  # [B] int32, relation of the forget prompt


class Batch(NamedTuple):
  """The data of one step; all parts are in the same packed rows.

  With the loss `answer_swap`, the forget prompts continue with other facts'
  answers, and `forget.reference` is the base's state at those facts' own
  prompts. With the loss `group_marginal`, `group_marginal` is the target at the
  end of each forget prompt.
  """

  packed: Packed
  forget: Targets
  retain: Targets
  text: Targets | None
  prompts: Targets | None  # The forget prompts' own tokens.
  group_marginal: types.Array | None = None  # [B, V] float32 probabilities
  choices: Choices | None = None  # Of the forget prompts.
  prior: OtherPrompts | None = None
  refusals: Targets | None = None  # After the forget prompts; B sequences.
  routed: types.Array | None = None  # [A] the first rows, with the forget set
  swapped: Targets | None = None  # Retain phrasings about forget subjects.
  guess_margin: types.Array | None = None  # Nats; None: that of the options.


KEPT = 'retain', 'text', 'swapped', 'prompts'  # Targets of the retain KL.


def about_facts(batch: Batch) -> dict[str, Targets]:
  """The targets of the retain KL but general text, by name."""
  found = {name: getattr(batch, name) for name in KEPT if name != 'text'}
  return {name: targets for name, targets in found.items()
          if targets is not None}


def with_references(batch: Batch, states: Mapping[str, types.Array]) -> Batch:
  """The batch with another model's states as what the retain KL retains.

  Args:
    batch: a batch.
    states: [P, D] final states of some targets, by name. Others keep theirs.
  """
  return batch._replace(**{
      name: getattr(batch, name)._replace(reference=reference)
      for name, reference in states.items()})


def sequence_nll(logits: types.Array, targets: Targets) -> types.Array:
  """Sequence NLL [B] under logits [P, V]: summed over each one's labels."""
  nll = losses.token_nll(logits, targets.labels)
  return sum_by_sequence(nll * targets.weight, targets)


def sum_by_sequence(values: types.Array, targets: Targets) -> types.Array:
  """Sums values [P] over each sequence's positions, to [B]."""
  zeros = jnp.zeros(targets.first.shape, values.dtype)
  return zeros.at[targets.sequence].add(values)
