"""The Fisher diagonal on the circuit, and the unlearn loop."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.config import run as run_config
from mansu_jax.runtime import checkpoints
from mansu_jax.runtime import memory
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding
from mansu_jax.stages.train import edits
from mansu_jax.stages.train import pools
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import fisher as fisher_lib
from mansu_jax.unlearn import loop
from mansu_jax.unlearn import losses
from mansu_jax.unlearn import objective
from mansu_jax.unlearn import rates
from mansu_jax.unlearn import step_data


def fisher_spans(
    options: run_config.FisherConfig, batches: batches_lib.Batches, *,
    seed: int) -> batches_lib.Spans:
  """The `--fisher_sequences` retain sequences that the Fisher averages over."""
  return batches.retain.spans.take(pools.sample_rows(
      batches.retain.even, options.sequences, seed))


def circuit_fisher(
    options: run_config.FisherConfig, edit: edits.Edit,
    spans: batches_lib.Spans, *, seed: int,
    cache: checkpoints.NoCache = checkpoints.NoCache()) -> types.PyTree:
  """Diagonal Fisher of retain sequences at the trained weights.

  Args:
    options: labels and chunk size.
    edit: the trained weights.
    spans: from `fisher_spans`.
    seed: of the labels, if the model draws them.
    cache: keeps the result for a resumed run.

  Returns:
    A float32 tree like `edit.theta`.
  """
  examples = jax.tree.map(jnp.asarray, spans)
  if options.labels == 'model':
    examples = examples._replace(labels=fisher_lib.draw_labels(
        jax.random.key(seed),
        edit.unembed(None, edit.base, examples.reference)))

  def compute():
    progress.count_tokens(examples.length.sum())
    return fisher_lib.diagonal_fisher(
        log_prob_of(edit), edit.theta, edit.base, examples,
        chunk=fisher_chunk(options, edit.theta))

  return cache.get_or_compute('fisher', compute)


def fisher_chunk(
    options: run_config.FisherConfig, theta: types.PyTree) -> int:
  """Per-example gradients at once: `--fisher_chunk`, or as memory allows.

  Each example takes a gradient and its square on the devices that have its row.
  """
  bytes_per_example = 2 * sum(
      memory.bytes_of(x) for x in jax.tree.leaves(theta))
  parts = sharding.num_row_shards()
  return parts * memory.fitting(
      -(-options.chunk // parts), bytes_per_example)


def log_prob_of(edit: edits.Edit) -> fisher_lib.LogProb:
  """The log-probability of a sequence's answer, as the Fisher takes it."""
  # Not `edit` itself: the compiled function is cached with all it closes over.
  forward, unembed = edit.forward, edit.unembed

  def log_prob(theta, view, example):
    hidden = forward(theta, view, example.tokens[None])[0]  # [T, D]
    logits = unembed(theta, view, hidden[example.where])
    return -jnp.sum(losses.token_nll(logits, example.labels) * example.weight)

  return log_prob


def unlearn(
    options: run_config.UnlearnConfig, tx_options: run_config.EditConfig,
    edit: edits.Edit, fisher: types.PyTree | None,
    batches: batches_lib.Batches, **loop_options: Any) -> types.PyTree:
  """Runs the loop.

  Args:
    options: objective, batches and optimizer.
    tx_options: projection and floor.
    edit: the trained weights.
    fisher: from `circuit_fisher`; None without projection.
    batches: from `pools.make_batches`.
    **loop_options: `total_weights` and optionally `visit`, `probe`, `keep` and
      `log_every` of `loop.run`.

  Returns:
    `{'theta': trained pytree, 'history': {metric: [steps]}}`. The history's
    `view` numbers each step's view in `edit.views`.
  """
  problem = make_problem(options, tx_options, edit, fisher)
  theta, history = loop.run(
      problem, with_margins(options, edit, batches), steps=options.steps,
      max_retain_kl=options.max_retain_kl, **loop_options)
  names = view_schedule(options, edit)
  numbers = [list(edit.views).index(name) for name in names]
  return {'theta': theta, 'history': {
      key: np.array([row[key] for row in history]) for key in history[0]
  } | {'view': np.resize(numbers, len(history))}}


def make_problem(
    options: run_config.UnlearnConfig, tx_options: run_config.EditConfig,
    edit: edits.Edit, fisher: types.PyTree | None) -> loop.Problem:
  """The loop's problem; arguments as in `unlearn`."""
  codes_changed = None
  if edit.grids:
    codes_changed = functools.partial(
        edits.codes_changed, edit.grids[0], edit.theta)
  make_loss = (
      objective.make_parts if options.orthogonal else objective.make_loss)
  return loop.Problem(
      theta=edit.theta,
      tx=edits.make_transform(options, tx_options, edit, fisher),
      loss=make_loss(options, edit.forward, edit.unembed),
      orthogonal=options.orthogonal, movable=edit.movable,
      sharpness=options.sharpness,
      views=_views(options, edit),
      base=edit.base, codes_changed=codes_changed, rates=_rates(options))


def _views(
    options: run_config.UnlearnConfig, edit: edits.Edit) -> list[loop.View]:
  """A round's views; those of quantized models have references of their own."""
  run = reference_program(edit)

  def refer(view, frozen, batch):
    return step_data.with_references(batch, run(
        view.quantize(edit.theta), frozen, *reference_inputs(batch)))

  found = dict(edit.views)
  _, *quantized = found
  for name in quantized if options.quantized_reference else ():
    found[name] = dataclasses.replace(
        found[name], refer=functools.partial(refer, found[name]))
  return [found[name] for name in view_schedule(options, edit)]


def reference_inputs(
    batch: step_data.Batch
) -> tuple[step_data.Packed, dict[str, types.Array]]:
  """The rows of a batch, and where its targets about facts lie in them."""
  return batch.packed, {name: targets.where for name, targets
                        in step_data.about_facts(batch).items()}


def reference_program(
    edit: edits.Edit) -> Callable[..., dict[str, types.Array]]:
  """Jitted `(theta, frozen, *reference_inputs) -> {name: states [P, D]}`."""
  forward = edit.forward

  @jax.jit
  def states(theta, frozen, packed, where):
    hidden = forward(theta, frozen, *packed)
    flat = hidden.reshape(-1, hidden.shape[-1])
    return {name: sharding.replicate(flat[at]) for name, at in where.items()}

  return states


def _rates(options: run_config.UnlearnConfig) -> rates.Rates:
  return rates.Rates(
      peak=options.learning_rate, steps=options.steps,
      warmup=int(options.warmup * options.steps), patience=options.patience,
      cooldown=options.cooldown)


def with_margins(
    options: run_config.UnlearnConfig, edit: edits.Edit,
    batches: Callable[[int], step_data.Batch]
) -> Callable[[int], step_data.Batch]:
  """The batches with the guess margin of the view that each step uses."""
  full_precision, *_ = edit.views
  margins = [np.float32(
      options.guess_margin if name == full_precision
      else options.quantized_guess_margin)
             for name in view_schedule(options, edit)]
  return lambda step: batches(step)._replace(
      guess_margin=margins[step % len(margins)])


def view_schedule(
    options: run_config.UnlearnConfig, edit: edits.Edit) -> list[str]:
  """Names of the views in the order in which the steps of a round use them."""
  full_precision, *quantized = edit.views
  return [full_precision] * options.fp_steps + quantized
