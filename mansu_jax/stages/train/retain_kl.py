"""The retain KL of an edit: measured, and as the Fisher estimates it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.runtime import sharding
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import batches as batches_lib
from mansu_jax.unlearn import fisher as fisher_lib
from mansu_jax.unlearn import losses

_ROWS = 16  # Sequences measured at once.


def measure(
    edit: edits.Edit, fisher: types.PyTree | None, spans: batches_lib.Spans,
    history: dict[str, np.ndarray], theta: types.PyTree) -> dict[str, Any]:
  """Measures the retain KL and compares it with the Fisher's estimate.

  Both figures are for the final weights in full precision on the Fisher's
  sequences, in nats a sequence. `seen_by_view` comes from training, in nats a
  token: the mean retain KL over the last tenth of each view's steps.

  Args:
    edit: the trained part of the model.
    fisher: from `training.circuit_fisher`, or None.
    spans: from `training.fisher_spans`.
    history: from `training.unlearn`.
    theta: the final weights in their storage dtype.
  """
  seen = {}
  for number, name in enumerate(edit.views):
    values = history['retain_kl'][history['view'] == number]
    seen[name] = float(
        np.mean(values[-max(1, values.size // 10):])) if values.size else None
  run = program(edit)
  nats = sum(float(run(theta, edit.base, part)) for part in batches_of(spans))
  out = {'measured_nats_per_sequence': nats / spans.length.size,
         'sequences': int(spans.length.size), 'seen_by_view': seen,
         'fisher_estimate_nats_per_sequence': None}
  if fisher is not None:
    delta = jax.tree.map(lambda a, b: a - b, theta, edit.theta)
    out['fisher_estimate_nats_per_sequence'] = float(
        fisher_lib.predicted_kl(fisher, delta))
  return out


def program(edit: edits.Edit) -> Callable[..., types.Array]:
  """Jitted `(theta, base, spans) -> KL(base || edited)`.

  In nats, summed over the answers' tokens of all sequences.
  """
  forward, unembed = edit.forward, edit.unembed

  @jax.jit
  def total(theta, view, part):
    hidden = forward(theta, view, part.tokens)  # [B, T, D]
    at = jnp.take_along_axis(hidden, part.where[..., None], 1)  # [B, A, D]
    kl = losses.token_kl(
        unembed(None, view, part.reference), unembed(theta, view, at))
    return jnp.sum(kl * part.weight)

  return total


def batches_of(spans: batches_lib.Spans) -> list[batches_lib.Spans]:
  """Batches of one shape; sequences that pad the last one have weight 0."""
  num, size = spans.length.size, sharding.round_up_rows(_ROWS)
  rows = np.arange(num + -num % size)
  spans = spans.take(rows % num)
  spans = spans._replace(weight=spans.weight * (rows < num)[:, None])
  return [spans.take(part) for part in rows.reshape(-1, size)]
