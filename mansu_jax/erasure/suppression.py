"""The output-suppression control: an edit that hides answers and erases none.

One matrix is changed, the last layer's down projection, so that at the last
token of the forgotten prompts the right answer's logit falls to those of the
others. It is linear least squares in closed form, with the states of retained
prompts held, and scaled until as few questions are answered as by the model
that it is compared with. All that leads to the answer is as it was, up to the
last layer's attention: whatever calls this erased cannot tell erasure from
hiding.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.erasure import lens
from mansu_jax.models import config as model_config
from mansu_jax.models import layers as layers_lib
from mansu_jax.runtime import sharding

_RIDGE = 1e-4  # Of the mean squared hidden activation.
HALVINGS = 30  # Of the scale, each asks once.
_SHORT_OF = 0.999


class Asked(NamedTuple):
  """n questions by first tokens."""

  choices: np.ndarray  # [n, C] int; where there are fewer, the rest repeat
  right: np.ndarray  # [n] int, column of the right one
  counts: np.ndarray  # [n] int, how many there are


class Control(NamedTuple):
  """The control, and how well it is matched."""

  params: types.Params
  wanted: float  # Share of questions answered by what it is compared with
  reached: float  # Share that it answers itself
  scale: float  # 1 brings margins to 0 where the fit is exact
  change: np.ndarray  # [F, D], of the last down projection


@functools.partial(jax.jit, static_argnames='config')
def hidden(
    config: model_config.ModelConfig, params: types.Params, last: types.Array
) -> types.Array:
  """The last MLP's hidden activation [n, F] of its input's states [n, D]."""
  mlp = {name: w[-1].astype(jnp.float32)
         for name, w in params['layers']['mlp'].items()}
  normed = layers_lib.rms_norm(
      last, params['layers']['mlp_norm'][-1], config.norm_eps)
  return nn.silu(normed @ mlp['gate']) * (normed @ mlp['up'])


def _logits(config, params, x, choices):
  """Logits [C] of some tokens after a residual [D] that has left all layers."""
  table = params.get('lm_head', params['embed'])
  return table[choices] @ layers_lib.rms_norm(
      x, params['final_norm'], config.norm_eps)


def _others(choices, right, count):
  """Which choices [C] are neither right nor there to fill up."""
  place = jnp.arange(len(choices))
  return (place != right) & (place < count)


@functools.partial(jax.jit, static_argnames='config')
def _margins(config, params, x, asked):
  """Right logit less the mean of the others, of residuals [n, D] after all.

  Returns:
    Margins [n] and their gradients [n, D].
  """
  def margin(x, *one):
    logits, others = _logits(config, params, x, one[0]), _others(*one)
    return logits[one[1]] - jnp.sum(logits * others) / jnp.sum(others)

  return jax.vmap(jax.value_and_grad(margin))(x, *asked)


@functools.partial(jax.jit, static_argnames='config')
def answered(
    config: model_config.ModelConfig, params: types.Params, x: types.Array,
    asked: Asked) -> types.Array:
  """Whether each right answer's first token is the likeliest choice's, [n].

  Args:
    config: the model's.
    params: full params.
    x: residuals [n, D] after all layers.
    asked: what they are asked.
  """
  def best(x, *one):
    logits = _logits(config, params, x, one[0])
    return logits[one[1]] > jnp.max(
        jnp.where(_others(*one), logits, -jnp.inf))

  return jax.vmap(best)(x, *asked)


def make(
    config: model_config.ModelConfig, params: types.Params, *,
    hide: lens.States, asked: Asked, keep: lens.States,
    match: np.ndarray, wanted: float) -> Control:
  """Makes the control of a base model.

  Args:
    config: the model's.
    params: the base's.
    hide: its states at the forgotten prompts, n of them.
    asked: what these ask.
    keep: its states at retained prompts.
    match: [n] bool, which of the n count for the match.
    wanted: share of those that shall still be answered.

  Returns:
    The control; its params share every leaf but one with the base's.
  """
  x = jnp.asarray(hide.layers[:, -1])
  gaps, grads = _margins(config, params, x, asked)
  gaps, grads = map(np.float64, sharding.to_host((gaps, grads)))
  wish = -gaps[:, None] * grads / np.sum(
      grads**2, 1, keepdims=True)  # [n, D]
  inside, outside = (
      np.float64(sharding.to_host(hidden(config, params, s.last)))
      for s in (hide, keep))
  change = _least_squares(inside, wish, outside)  # [F, D]
  moved = jnp.asarray(inside @ change, jnp.float32)

  def share(scale):
    return float(np.mean(sharding.to_host(
        answered(config, params, x + scale * moved, asked))[match]))

  scale = _largest_above(share, wanted)
  mlp = params['layers']['mlp']
  down = jnp.asarray(mlp['down'])
  down = down.at[-1].add((scale * change).astype(down.dtype))
  layers = params['layers'] | {'mlp': mlp | {'down': down}}
  return Control(params | {'layers': layers}, wanted, share(scale), scale,
                 scale * change)


def states(
    config: model_config.ModelConfig, params: types.Params, control: Control,
    base: lens.States) -> lens.States:
  """The control's states, from the base's: only what comes last differs.

  Args:
    config: the model's.
    params: the base's.
    control: made of it.
    base: its states.
  """
  inside = np.float64(sharding.to_host(hidden(config, params, base.last)))
  after = base.layers[:, -1] + (inside @ control.change).astype(np.float32)
  final = layers_lib.rms_norm(
      jnp.asarray(after), params['final_norm'], config.norm_eps)
  return lens.States(
      np.concatenate([base.layers[:, :-1], after[:, None]], 1), base.last,
      sharding.to_host(final))


def _least_squares(inside, wish, outside):
  """[F, D] that takes `inside` [n, F] to `wish`, `outside` [m, F] to 0."""
  every = np.concatenate([inside, outside])
  target = np.concatenate([wish, np.zeros((len(outside), wish.shape[1]))])
  gram = every @ every.T
  gram += _RIDGE * np.mean(every**2) * every.shape[1] * np.eye(len(every))
  return every.T @ np.linalg.solve(gram, target)


def _largest_above(share, wanted: float) -> float:
  """The largest scale, up to 4, at which the share is not below `wanted`.

  Less a little: there a margin is 0, and falls on either side by rounding.
  """
  low, high = 0.0, 4.0
  for _ in range(HALVINGS):
    middle = (low + high) / 2
    low, high = (middle, high) if share(middle) >= wanted else (low, middle)
  return _SHORT_OF * low
