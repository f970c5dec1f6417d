"""What a forget loss is, and what it reads of a step."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import enum
from typing import NamedTuple

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.unlearn import losses
from mansu_jax.unlearn import step_data


class Needs(enum.Enum):
  """What a forget loss reads beyond the facts, which the batches then hold."""

  NOTHING = enum.auto()
  OTHER_PROMPTS = enum.auto()  # `Batch.prior`
  OTHER_ANSWERS = enum.auto()  # Forget prompts continue with others' answers.
  GROUP_MARGINAL = enum.auto()  # `Batch.group_marginal`
  REFUSALS = enum.auto()  # `Batch.refusals`


class Step(NamedTuple):
  """One step of training, of B forget sequences with P predicted positions."""

  batch: step_data.Batch
  logits: types.Array  # [P, V] of the model at `batch.forget`
  nll: types.Array  # [B] nats of each answer
  routed_nll: types.Array | None  # [B] the same with the base's mover layer
  base: Callable[[types.Array], types.Array]  # its states [..., D] -> logits
  states: types.Array | None = None  # [P, D] after `--unlearn_rmu_layer`
  refusal_logits: types.Array | None = None  # [P, V] at `batch.refusals`

  @property
  def token_nll(self) -> types.Array:
    """[P] nats of each answer token."""
    return losses.token_nll(self.logits, self.batch.forget.labels)

  @property
  def length(self) -> types.Array:
    """[B] tokens of each answer."""
    return step_data.sum_by_sequence(
        self.batch.forget.weight, self.batch.forget)

  @property
  def at_prompt_end(self) -> types.Array:
    """[B, V] logits at the end of each prompt."""
    return self.logits[self.batch.forget.first]

  @property
  def base_logits(self) -> types.Array:
    """[P, V] of the base."""
    return self.base(self.batch.forget.reference)

  @property
  def base_nll(self) -> types.Array:
    """[B] nats of each answer in the base."""
    return step_data.sequence_nll(self.base_logits, self.batch.forget)

  @property
  def refusal_nll(self) -> types.Array:
    """[B] nats of each refusal."""
    return step_data.sequence_nll(self.refusal_logits, self.batch.refusals)

  def mean_over_tokens(self, values: types.Array) -> types.Array:
    """The mean of [P] over all answer tokens."""
    return losses.weighted_mean(values, self.batch.forget.weight)


@dataclasses.dataclass(frozen=True)
class ForgetTerm:
  """A forget loss.

  Attributes:
    loss: `(options, step) -> scalar`, to be minimized.
    needs: what it reads beyond the forget facts.
    reads_states: whether it reads the residual stream within the model.
  """

  loss: Callable[[run_config.UnlearnConfig, Step], types.Array]
  needs: Needs = Needs.NOTHING
  reads_states: bool = False
