"""What a closed form is: what it wants of a down projection, and its solution.

At token f the hidden activations h_f [F] of an MLP give its output h_f W, with
W [F, D]. A form wants the output to change by t_f [D] at the forget tokens and
to stay at the retained ones. The edit W + E has the E that minimizes

    mean_f |h_f E - s t_f|^2 + w mean_r |h_r E|^2 + d m |E|^2

with the scale s, the retain weight w, the ridge d, and m, the mean square of an
activation in the first two terms. It is a ridge regression:

    E = (A_f + w A_r + d m I)^-1 s C

with the second moments A = mean h h^T and C = mean_f h_f t_f^T.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from mansu_jax import types


class Moments(NamedTuple):
  """Weighted sums over tokens, float32; the weights of a mean add up to 1."""

  forget: types.Array  # [F, F], mean h h^T over forget tokens
  retain: types.Array  # [F, F], weighted means h h^T of the retained sets
  cells: types.Array  # [C, F], each cell's part of the mean h of forget tokens
  share: types.Array  # [C], its share of the forget tokens
  sized: types.Array  # [F], mean h over forget tokens, times the output's size
  redirection: types.Array  # [D], mean state in refusals less that at prompts


@dataclasses.dataclass(frozen=True)
class ClosedForm:
  """A method that solves for the edit of a down projection.

  Attributes:
    wanted: `(moments, W [F, D], scale [D] or None) -> C [F, D]`. The scale is
      that of a norm of the MLP's output, if the model has one.
    reads_refusals: whether it reads `Moments.redirection`.
    reads_cells: whether it reads `Moments.cells`.
  """

  wanted: Callable[
      [Moments, types.Array, types.Array | None], types.Array]
  reads_refusals: bool = False
  reads_cells: bool = False


def zeros(cells: int, d_ff: int, d_model: int) -> Moments:
  """Moments of no tokens."""
  return Moments(*(jnp.zeros(shape, jnp.float32) for shape in (
      (d_ff, d_ff), (d_ff, d_ff), (cells, d_ff), (cells,), (d_ff,),
      (d_model,))))


def solve(
    moments: Moments, wanted: types.Array, *, retain_weight: types.Array,
    ridge: types.Array) -> types.Array:
  """The edit E [F, D], float32; not finite if float32 cannot factor the matrix.

  Args:
    moments: of the tokens.
    wanted: s C, [F, D].
    retain_weight: w.
    ridge: d.
  """
  second = moments.forget + retain_weight * moments.retain
  mean_square = jnp.mean(jnp.diagonal(second))
  second += ridge * mean_square * jnp.eye(len(second), dtype=second.dtype)
  factor = jax.scipy.linalg.cho_factor(second, lower=True)
  return jax.scipy.linalg.cho_solve(factor, wanted)


def product(a: types.Array, b: types.Array) -> types.Array:
  """A matrix product in full float32 precision on every device."""
  return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
