"""The output-suppression control: an edit that hides answers, erasing none.

The edit changes one matrix, the last layer's down projection, so that at the
last token of the forgotten prompts the logit of the right answer falls to the
logits of the other choices. It solves linear least squares in closed form,
keeps the outputs at retained prompts, and is scaled until it answers as few
questions as the model it controls for. Everything before the last MLP stays
unchanged: a measure that calls this control erased cannot distinguish erasure
from hiding.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.erasure import lens
from mansu_jax.models import config as model_config
from mansu_jax.models import layers
from mansu_jax.runtime import sharding

_RIDGE = 1e-4  # Penalty, as a share of the mean squared hidden activation.
HALVINGS = 30  # Bisection steps of the scale; each asks all questions once.
_SHORT_OF = 0.999  # Share of the largest scale that is used.


class Asked(NamedTuple):
  """The choices of n questions, by their first tokens."""

  choices: np.ndarray  # [n, C] int, padded by repeating one choice
  right: np.ndarray  # [n] int, column of the right choice
  counts: np.ndarray  # [n] int, number of choices without padding


class Control(NamedTuple):
  """The control, and how well it matches the model it controls for."""

  params: types.Params
  wanted: float  # Share of questions that the other model answers
  reached: float  # Share of questions that the control answers
  scale: float  # 1 brings margins to 0 if the fit is exact
  change: np.ndarray  # [F, D], added to the last down projection


@functools.partial(jax.jit, static_argnames='config')
def hidden(
    config: model_config.ModelConfig, params: types.Params, last: types.Array
) -> types.Array:
  """Hidden activations [n, F] of the last MLP for input states [n, D]."""
  weights = jax.tree.map(
      lambda w: w[-1].astype(jnp.float32), params['layers'])
  return layers.mlp_hidden(
      config, weights['mlp'], layers.norm(config, weights, 'mlp_norm', last))


def _logits(config, params, x, choices):
  """Logits [C] of some tokens from the residual [D] after all layers."""
  table = params.get('lm_head', params['embed'])
  return layers.soft_cap(
      table[choices] @ layers.norm(config, params, 'final_norm', x),
      config.logits_soft_cap)


def _others(choices, right, count):
  """Which choices [C] are wrong ones, padding excluded."""
  column = jnp.arange(len(choices))
  return (column != right) & (column < count)


@functools.partial(jax.jit, static_argnames='config')
def _margins(config, params, x, asked):
  """Right logit less the mean of the others, from residuals [n, D].

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
  """Whether the right choice is the likeliest, by first tokens, [n].

  Args:
    config: the model's config.
    params: full params.
    x: residuals [n, D] after all layers.
    asked: the questions' choices.
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
    config: the model's config.
    params: the base's params.
    hide: states of the base at n forgotten prompts.
    asked: the choices of these prompts.
    keep: states of the base at retained prompts.
    match: [n] bool, the prompts that count for the match.
    wanted: share of these that the control should still answer.

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
  change = _least_squares(
      inside, wish / _post_norm_factor(config, params, inside), outside)

  def share(scale):
    after = x + _moved(config, params, inside, scale * change)
    return float(np.mean(sharding.to_host(
        answered(config, params, after, asked))[match]))

  scale = _largest_above(share, wanted)
  mlp = params['layers']['mlp']
  down = jnp.asarray(mlp['down'])
  down = down.at[-1].add((scale * change).astype(down.dtype))
  edited = params['layers'] | {'mlp': mlp | {'down': down}}
  return Control(params | {'layers': edited}, wanted, share(scale), scale,
                 scale * change)


def states(
    config: model_config.ModelConfig, params: types.Params, control: Control,
    base: lens.States) -> lens.States:
  """The control's states, from the base's: only the last layer differs.

  Args:
    config: the model's config.
    params: the base's params.
    control: the control of this base.
    base: states of the base.
  """
  inside = np.float64(sharding.to_host(hidden(config, params, base.last)))
  after = base.layers[:, -1] + _moved(config, params, inside, control.change)
  final = layers.norm(config, params, 'final_norm', jnp.asarray(after))
  return lens.States(
      np.concatenate([base.layers[:, :-1], after[:, None]], 1), base.last,
      sharding.to_host(final))


def _moved(config, params, inside, change):
  """What a change [F, D] of the last down projection adds to the residual.

  Args:
    config: the model's config.
    params: the base's params.
    inside: hidden activations [n, F] of the last MLP.
    change: the change.

  Returns:
    Float32 [n, D].
  """
  if not config.post_norms:
    return (inside @ change).astype(np.float32)
  out = _last_output(params, inside)
  before, after = (
      sharding.to_host(layers.post_norm(
          config, _last_layer(params), 'mlp', jnp.asarray(x, jnp.float32)))
      for x in (out, out + inside @ change))
  return after - before


def _post_norm_factor(config, params, inside):
  """What one unit of the last MLP's output adds, about the base; [n, D] or 1.

  The norm's size is taken as constant.
  """
  if not config.post_norms:
    return 1.0
  size = layers.inverse_size(config, jnp.asarray(
      _last_output(params, inside), jnp.float32))
  scale = layers.norm_scale(config, _last_layer(params), 'mlp_post_norm')
  return np.float64(sharding.to_host(size * scale[None]))


def _last_layer(params):
  return jax.tree.map(lambda w: w[-1], params['layers'])


def _last_output(params, inside):
  """Output [n, D] of the last MLP before its post norm."""
  down = params['layers']['mlp']['down'][-1]
  return inside @ np.float64(sharding.to_host(down))


def _least_squares(inside, wish, outside):
  """A map [F, D] from `inside` [n, F] to `wish` and `outside` [m, F] to 0."""
  every = np.concatenate([inside, outside])
  target = np.concatenate([wish, np.zeros((len(outside), wish.shape[1]))])
  gram = every @ every.T
  gram += _RIDGE * np.mean(every**2) * every.shape[1] * np.eye(len(every))
  return every.T @ np.linalg.solve(gram, target)


def _largest_above(share, wanted: float) -> float:
  """The largest scale, up to 4, at which the share is at least `wanted`.

  Slightly reduced: at that scale a margin is 0, and rounding decides its sign.
  """
  low, high = 0.0, 4.0
  for _ in range(HALVINGS):
    middle = (low + high) / 2
    low, high = (middle, high) if share(middle) >= wanted else (low, middle)
  return _SHORT_OF * low
