"""Where inside a model can an answer be read? A linear lens on every layer.

Scores of attribution cannot say whether knowledge has gone or only its way out:
they are complete, so that with the answer gone from the output they sum to
about nothing, whoever hid it. This looks at the states instead. At every layer a
linear map from the residual stream to the final hidden state, both at a
prompt's last token, is fitted on facts that are retained, and read on facts
that are forgotten, which it has never seen: what it finds there is in the
state, and not in the map. An edit late in the model that hides an answer leaves
it readable in all the layers before.

The map is the tuned lens (Belrose et al.), by ridge regression in place of
gradient descent, of answers' first tokens in place of all tokens. It is fitted
to the model that it reads, so that a model which only turned its states is read
as well as before. It sees the last token alone: an answer that stays at the
subject, and is not moved on, it does not see.

References:
  nostalgebraist, interpreting GPT: the logit lens, 2020
  Belrose et al., Eliciting Latent Predictions from Transformers with the Tuned
  Lens, 2023 (arXiv 2303.08112)
"""

from __future__ import annotations

from collections.abc import Sequence
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax import types
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.models import sites as sites_lib

_SITES = (sites_lib.Site.RESIDUAL, sites_lib.Site.ATTN_OUT)
_ROWS = 16  # Prompts run at once,
_MULTIPLE = 8  # padded to multiples of this.
RIDGE = 1e-3  # Of the states' mean variance.


class States(NamedTuple):
  """What a model holds at the last token of n prompts."""

  layers: np.ndarray  # [n, L + 1, D], the embedding, and after each layer
  last: np.ndarray  # [n, D], as the last layer's MLP is entered, before its norm
  final: np.ndarray  # [n, D], after the final norm

  def take(self, rows: np.ndarray | slice) -> States:
    """Those of some prompts."""
    return States(*(x[rows] for x in self))


@functools.partial(jax.jit, static_argnames='config')
def _at_ends(config, params, tokens, ends):
  hidden, taps = decoder.forward_with_taps(
      config, params, tokens, sites=_SITES)
  rows = jnp.arange(tokens.shape[0])
  residual = taps[sites_lib.Site.RESIDUAL]  # [L, B, T, D]
  first = decoder.embed(params, tokens)[None]
  layers = jnp.concatenate([first, residual])[:, rows, ends]
  last = layers[-2] + taps[sites_lib.Site.ATTN_OUT][-1, rows, ends]
  return jnp.moveaxis(layers, 0, 1), last, hidden[rows, ends]


def states(
    config: model_config.ModelConfig, params: types.Params,
    prompts: Sequence[Sequence[int]]) -> States:
  """Runs prompts and keeps what is at their last tokens.

  Args:
    config: the model's.
    params: full params.
    prompts: n lists of token ids, none empty.
  """
  order = np.argsort([len(p) for p in prompts], kind='stable')
  parts = []
  for start in range(0, len(order), _ROWS):
    rows = order[start:start + _ROWS]
    width = -(-len(prompts[rows[-1]]) // _MULTIPLE) * _MULTIPLE
    tokens = np.zeros((_ROWS, width), np.int32)
    ends = np.zeros(_ROWS, np.int32)
    for row, i in enumerate(rows):
      tokens[row, :len(prompts[i])] = prompts[i]
      ends[row] = len(prompts[i]) - 1
    found = jax.device_get(_at_ends(config, params, tokens, ends))
    parts.append([x[:len(rows)] for x in found])
  back = np.argsort(order)
  return States(*(np.concatenate(x)[back] for x in zip(*parts)))


def predict(
    train: np.ndarray, target: np.ndarray, test: np.ndarray,
    ridge: float = RIDGE) -> np.ndarray:
  """Ridge regression from states to states, in its dual form.

  Args:
    train: [n, D] states.
    target: [n, E] what they should give.
    test: [m, D] states to read.
    ridge: penalty, of the mean variance of a coordinate of `train`.

  Returns:
    [m, E].
  """
  train, target, test = (x.astype(np.float64) for x in (train, target, test))
  middle, bias = train.mean(0), target.mean(0)
  train, test = train - middle, test - middle
  penalty = ridge * len(train) * max(np.mean(train**2), 1e-30)
  gram = train @ train.T + penalty * np.eye(len(train))
  return test @ (train.T @ np.linalg.solve(gram, target - bias)) + bias


def read(
    fit: States, asked: States, table: np.ndarray, choices: np.ndarray
) -> np.ndarray:
  """What each layer says of each question.

  Args:
    fit: states of the prompts that the lens is fitted on.
    asked: of m questions.
    table: [V, D], the unembedding.
    choices: [m, C] int, first tokens of the choices.

  Returns:
    [L + 1, m] int, the choice that each layer prefers; the last one's is what
    the model itself says.
  """
  vectors = np.asarray(table[choices], np.float64)  # [m, C, D]
  prefer = lambda states: np.einsum(
      'mD,mCD->mC', states, vectors).argmax(1)
  inner = [prefer(predict(fit.layers[:, layer], fit.final,
                          asked.layers[:, layer]))
           for layer in range(fit.layers.shape[1] - 1)]
  return np.array([*inner, prefer(asked.final)])
