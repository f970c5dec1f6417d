"""Finds the layer that moves the answer from the subject to the last token.

For each layer, the states before it at the span, from the subject's first token
to the second-last token, are replaced by those of another fact in the same
phrasing. Before the mover layer this removes the answer; after it, the answer
is at the last token and stays. The base and training phrasings alone decide,
so that the layer does not depend on what is judged with it.
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.erasure import spans
from mansu_jax.erasure import transplant
from mansu_jax.models import blocks
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import places as places_lib
from mansu_jax.runtime import progress
from mansu_jax.runtime import sharding

REMOVED = 0.8  # Least share of the lead that is removed before the mover layer.
KEPT = 0.2  # Largest share that is removed before the next layer.


class NoLead(ValueError):
  """The base does not prefer the right choices on its own prompts."""


class Mover(NamedTuple):
  """The mover layer, and how it was found."""

  layer: int
  sharp: bool  # Whether the shares cross from REMOVED to KEPT in one layer.
  removed: list[float]  # Share of the lead removed before each layer.


@functools.partial(jax.jit, static_argnames='config')
def logits_by_layer(
    config: model_config.ModelConfig, params: types.Params, rows: spans.Rows,
    source: types.Array) -> types.Array:
  """Logits of the choices when another fact's states replace the span's.

  A row holds the prompt, the other prompt, and a last token for each layer. The
  latter starts at its layer with the state of the prompt's last token, and
  attends to the other prompt. This equals a replacement at the span: the tokens
  before the span are the same in both prompts, and in later layers the states
  of the span follow from those that replaced them.

  Args:
    config: the model's config; static.
    params: full params.
    rows: the prompts.
    source: the row of each row's other fact, int [B].

  Returns:
    Float32 [B, 1 + L, C]: without a replacement, then before each layer.
  """
  width = rows.tokens.shape[1]
  with transplant.exact():
    place = transplant.positions(rows, config.num_layers)
    embedded = decoder.embed(
        config, params,
        jnp.concatenate([rows.tokens, rows.tokens[source]], axis=1),
        jnp.concatenate([place[:, :width]] * 2, axis=1)).astype(jnp.float32)
    x = jnp.pad(embedded, [(0, 0), (0, config.num_layers), (0, 0)])
    visible = transplant.mask(rows, config.num_layers)
    visible = jnp.pad(visible, [(0, 0), (width, 0), (width, 0)])
    visible = visible.at[:, :width, :width].set(
        jnp.tril(jnp.ones((width, width), bool)))
    places = places_lib.find(
        config, jnp.concatenate([place[:, :width], place], axis=1), visible)
    block = blocks.Block(config)

    def one(x, inputs):
      weights, layer = inputs
      x = x.at[:, 2 * width + layer].set(transplant.at_last(x, rows))
      return block.apply({'params': weights}, x, layer, places)

    x, _ = jax.lax.scan(
        one, x, (params['layers'], jnp.arange(config.num_layers)))
    x = jnp.concatenate([
        transplant.at_last(x, rows)[:, None], x[:, 2 * width:]], axis=1)
    return transplant.choice_logits(config, params, x, rows.choices)


def find(
    config: model_config.ModelConfig, params: types.Params,
    questions: spans.Questions) -> Mover:
  """Finds the mover layer of the base.

  The lead is the right choice's logit less the mean of the others, and 0 is
  the lead on the whole prompt of another fact.

  Args:
    config: the model's config.
    params: the base's params.
    questions: questions in training phrasings; each with one other fact.

  Raises:
    NoLead: the base has no lead to remove.
  """
  leads = np.zeros((len(questions), 1 + config.num_layers))
  for batch in progress.track(spans.batches_of(questions), 'mover layer'):
    progress.count_tokens(2 * int(batch.rows.lengths.sum()))
    logits = sharding.to_host(logits_by_layer(
        config, params, batch.rows, batch.others[0]))
    right, counts = (x[batch.members] for x in (
        questions.asked.right, questions.asked.counts))
    leads[batch.members] = _leads(logits[:len(right)], right, counts)
  return locate(leads.mean(0))


def _leads(
    logits: np.ndarray, right: np.ndarray, counts: np.ndarray) -> np.ndarray:
  """Right logit less the mean of the others, [b, 1 + L]."""
  column = np.arange(logits.shape[-1])
  own = column == right[:, None]
  others = ~own & (column < counts[:, None])
  mean = lambda chosen: (logits * chosen[:, None]).sum(-1) / chosen.sum(
      -1, keepdims=True)
  return mean(own) - mean(others)


def locate(leads: Sequence[float]) -> Mover:
  """The mover layer, from the mean lead.

  It is the last layer before which at least `REMOVED` of the lead is removed.
  If more than `KEPT` is removed before the next layer too, it is the layer
  after which the share falls most, and not sharp.

  Args:
    leads: mean lead without a replacement, then before each layer.

  Raises:
    NoLead: the lead without a replacement is not above that before layer 0.

  Example:
    >>> locate([4.0, 0.0, 0.0, 3.9])
    Mover(layer=1, sharp=True, removed=[1.0, 1.0, 0.025])
  """
  whole, *left = leads
  lead = whole - left[0]
  if not lead > 0:
    raise NoLead(
        f'the base prefers the right choices by {whole:.3g} in its own prompts'
        f' and by {left[0]:.3g} in those of other facts, so there is no answer'
        ' whose way could be followed')
  removed = [round(float(whole - one) / float(lead), 6) for one in left]
  after = [*removed[1:], 0.0]
  layer = max(i for i, share in enumerate(removed) if share >= REMOVED)
  sharp = after[layer] <= KEPT
  if not sharp:
    layer = int(np.argmax(np.subtract(removed, after)))
  return Mover(layer, sharp, removed)
