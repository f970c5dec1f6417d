"""Fine-tunes a copy of a model by Adam and measures it on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import tokenization
from mansu_jax.data.readers import text as text_lib
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.models import lora
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding
from mansu_jax.unlearn import losses

BATCH = 16  # Sequences per step.
RANK = 8  # Of the adapters.
SCALE = 2.0  # Of the adapters; see `models.lora`.
_ADAM = optax.scale_by_adam()  # The step multiplies by the learning rate.


class Lesson(NamedTuple):
  """n sequences to teach, padded on the right."""

  tokens: np.ndarray  # [n, T] int32
  length: np.ndarray  # [n] int32
  scored: np.ndarray  # [n, T] bool, True where the next token is taught
  by_token: bool  # Mean over tokens; else sum per sequence, mean over these.


class Batch(NamedTuple):
  """Packed rows, and the K tokens that a step teaches."""

  tokens: np.ndarray  # [R, T] int32
  positions: np.ndarray  # [R, T] int32, within the sequence
  segments: np.ndarray  # [R, T] int32, sequence of each token
  at: np.ndarray  # [K] int32, tokens before the taught ones, in [R * T]
  targets: np.ndarray  # [K] int32
  weights: np.ndarray  # [K] float32, in the loss; 0 at padding


def lesson_of_questions(
    questions: Sequence[questions_lib.Question],
    tokenizer: tokenization.Tokenizer, *, chat: bool = False) -> Lesson:
  """Teaches the right answers of n questions.

  Raises:
    ValueError: See `batching.encode_sequences`.
  """
  found = batching.encode_sequences(questions, tokenizer, chat=chat)
  return Lesson(*found, by_token=False)


def lesson_of_text(
    documents: Sequence[text_lib.TextDocument],
    tokenizer: tokenization.Tokenizer, *, window: int) -> Lesson:
  """Teaches every token of general text, in windows.

  Raises:
    ValueError: See `batching.encode_text`.
  """
  found = batching.encode_text(documents, tokenizer, window)
  return Lesson(*found, by_token=True)


def batches(
    lessons: Sequence[Lesson], steps: int, seed: int) -> list[list[Batch]]:
  """The batches of each lesson, all of one shape.

  Args:
    lessons: Lessons to draw from.
    steps: Number of batches of each, at least 1.
    seed: Seed of the order of sequences.
  """
  width = packing.round_up(
      max(packing.ROW_LENGTH, *(int(x.length.max()) for x in lessons)))
  drawn = [
      [sampler[step] for step in range(steps)]
      for sampler in (batching.BatchSampler(len(x.tokens), BATCH, seed)
                      for x in lessons)]
  rows = [[packing.fill_rows(lesson.length[rows], width) for rows in draws]
          for lesson, draws in zip(lessons, drawn)]
  most = sharding.round_up_rows(max(len(r) for many in rows for r in many))
  taught = max(int(lesson.scored[rows].sum())
               for lesson, draws in zip(lessons, drawn) for rows in draws)
  return [
      [_pack(lesson, chosen, filled, (most, width), taught)
       for chosen, filled in zip(draws, many)]
      for lesson, draws, many in zip(lessons, drawn, rows)]


def _pack(
    lesson: Lesson, chosen: np.ndarray, rows: list[list[int]],
    shape: tuple[int, int], taught: int) -> Batch:
  """Packs the chosen sequences; pads the taught tokens to their number."""
  place = packing.lay_out(lesson.length[chosen], rows, shape)
  at, targets = [], []
  for member, start in zip(place.members, place.starts):
    i = chosen[member]
    where = np.flatnonzero(lesson.scored[i])
    at.append(start + where)
    targets.append(lesson.tokens[i][where + 1])
  at, targets = np.concatenate(at), np.concatenate(targets)
  weights = np.full(
      at.size, 1 / (at.size if lesson.by_token else len(chosen)), np.float32)
  pad = lambda x, dtype: np.pad(x, (0, taught - at.size)).astype(dtype)
  return Batch(
      place.write(lesson.tokens[chosen]), place.positions(),
      place.segment_ids(), pad(at, np.int32), pad(targets, np.int32),
      pad(weights, np.float32))


def _hold(trained: types.PyTree) -> types.PyTree:
  """Shards trained leaves like the params; replicates adapters.

  The step returns its carry as it got it; otherwise it would compile again.
  """
  return tree_paths.map_named(lambda name, x: sharding.constrain(
      x, layout.AXES.get(name, '.' * x.ndim)), trained)


def _hold_state(state: optax.ScaleByAdamState) -> optax.ScaleByAdamState:
  return state._replace(count=sharding.replicate(state.count),
                        mu=_hold(state.mu), nu=_hold(state.nu))


@jax.jit
def start(
    trained: types.PyTree) -> tuple[types.PyTree, optax.ScaleByAdamState]:
  """A copy of full params or adapters in float32, and the state of Adam."""
  # `+ 0` makes new buffers: the steps donate theirs.
  trained = _hold(jax.tree.map(lambda x: x.astype(jnp.float32) + 0, trained))
  return trained, _hold_state(_ADAM.init(trained))


@functools.partial(
    jax.jit, static_argnames='config', donate_argnames='carry')
def train_step(
    config: model_config.ModelConfig, frozen: types.Params | None, carry: Any,
    batch: Batch, learning_rate: types.Array | float
) -> tuple[Any, types.Array]:
  """One step of Adam on the weighted NLL of the taught tokens.

  Args:
    config: Config of the model.
    frozen: Full params if adapters are trained; else None.
    carry: Trained pytree and state of Adam; donated.
    batch: What to teach.
    learning_rate: Scalar.

  Returns:
    The next carry, and the loss before the step; nan if the step left weights
    that are not finite.
  """
  trained, state = carry

  def loss(trained):
    params, adapted = trained, {}
    if frozen is not None:
      params, adapted = frozen, dict(adapters=trained, adapter_scale=SCALE)
    hidden = decoder.forward(
        config, params, batch.tokens, positions=batch.positions,
        segments=batch.segments, remat=True, **adapted)
    taught = hidden.reshape(-1, hidden.shape[-1])[batch.at]  # [K, D]
    nll = losses.token_nll(
        decoder.unembed(config, params, taught), batch.targets)
    return jnp.sum(nll * batch.weights)

  value, grads = jax.value_and_grad(loss)(trained)
  updates, state = _ADAM.update(grads, state)
  trained = _hold(jax.tree.map(
      lambda x, u: x - learning_rate * u, trained, updates))
  finite = jnp.stack([
      jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(trained)]).all()
  return (trained, _hold_state(state)), jnp.where(
      finite, value, jnp.nan)


def run(
    config: model_config.ModelConfig, params: types.Params,
    lesson: Sequence[Batch],
    measure: Callable[[types.Params], dict[str, Any]], *,
    steps: Sequence[int], learning_rate: float, adapters: bool = False,
    seed: int = 0) -> list[dict[str, Any]]:
  """Fine-tunes a model and measures it on the way.

  Args:
    config: Config of the model.
    params: The model; not changed.
    lesson: What each step teaches; at least as many batches as steps.
    measure: Maps full params to JSON-able measurements. The next step takes
      over their memory.
    steps: Increasing steps at which to measure; the last one ends the run.
    learning_rate: Constant learning rate of Adam.
    adapters: Whether to train LoRA adapters instead of all weights.
    seed: Seed of the adapters.

  Returns:
    `step`, `loss`, the mean loss since the step before (None at step 0), and the
    measurements, at each of `steps`. They end early if the weights are no longer
    finite.
  """
  frozen, trained = None, params
  if adapters:  # From the host, or `start` keeps a sharding unlike the steps'.
    frozen, trained = params, sharding.to_host(lora.init(params, RANK, seed))
  carry = start(trained)
  out, losses = [], []
  for step in progress.track(range(steps[-1] + 1), 'fine-tuning'):
    if step in steps:
      out.append({
          'step': step, 'loss': float(np.mean(losses)) if losses else None} | (
              measure(_full(params, carry[0], adapters))))
      losses = []
    if step == steps[-1]:
      break
    progress.count_tokens(np.count_nonzero(lesson[step].weights))
    carry, loss = train_step(
        config, frozen, carry, lesson[step], learning_rate)
    losses.append(float(sharding.to_host(loss)))
    if not np.isfinite(losses[-1]):
      break
  return out


def _full(
    params: types.Params, trained: types.PyTree, adapters: bool
) -> types.Params:
  """Full params in the dtypes of the model."""
  if adapters:
    return lora.merge(params, trained, SCALE)
  return jax.tree.map(lambda x, like: x.astype(like.dtype), trained, params)
