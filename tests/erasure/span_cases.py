"""Questions about a random model, which it answers correctly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.erasure import spans
from mansu_jax.erasure import suppression
from mansu_jax.models import decoder
from tests.circuits import small

CONFIG = small.config(num_layers=4)
PARAMS = jax.tree.map(jnp.asarray, small.params(CONFIG))
LAYER = 2


def questions(params=PARAMS, num=6):
  """Two phrasings of different length, half of the questions in each."""
  rng = np.random.default_rng(0)
  half = num // 2
  subjects, prompts = rng.permutation(np.arange(1, 29))[:num], []
  for i, subject in enumerate(subjects.tolist()):
    form = [3, 4, 5] if i < half else [6, 7, 8, 9, 2]
    prompts.append([form[0], subject, *form[1:]])
  choices = np.array([rng.permutation(29)[:4] for _ in prompts], np.int32)
  right = [int(logits(params, ids)[row].argmax())
           for ids, row in zip(prompts, choices)]
  other = lambda i, k: i - i % half + (i + k) % half
  return spans.Questions(
      prompts=prompts, batches=(slice(0, num),),
      others=np.array([[other(i, 1), other(i, 2)] for i in range(num)]),
      starts=np.ones(num, np.int32),
      asked=suppression.Asked(choices, np.array(right, np.int32),
                              np.full(num, 4, np.int32)),
      facts=np.array([f'fact/{i}' for i in range(num)]))


@jax.jit
def _logits(params, ids):
  return decoder.unembed(
      CONFIG, params, decoder.forward(CONFIG, params, ids))[0, -1]


@functools.partial(jax.jit, static_argnames='layer')
def _before(params, ids, layer):
  return decoder.run_prefix(CONFIG, params, ids, layer=layer)


@functools.partial(jax.jit, static_argnames='layer')
def _after(params, x, layer):
  hidden = decoder.forward(CONFIG, params, embeddings=x, first_layer=layer)
  return decoder.unembed(CONFIG, params, hidden)[0, -1]


def logits(params, ids):
  """Logits [V] of the next token, of an ordinary run."""
  return np.asarray(_logits(params, np.array([ids])))


def before(params, ids, layer):
  """Residual stream [1, T, D] before a layer."""
  return np.array(_before(params, np.array([ids]), layer=layer))


def after(params, x, layer, choices):
  """Logits of choices [C] from the residual stream before a layer."""
  return np.asarray(_after(params, x, layer=layer))[choices]


def changed(layers, names=None, seed=1):
  """The params with other random weights in some layers and groups."""
  other = jax.tree.map(jnp.asarray, small.params(CONFIG, seed))
  chosen = jnp.isin(jnp.arange(CONFIG.num_layers), jnp.array(layers))
  mix = lambda a, b: jnp.where(
      chosen.reshape(-1, *[1] * (a.ndim - 1)), b, a)
  return PARAMS | {'layers': PARAMS['layers'] | {
      name: jax.tree.map(mix, PARAMS['layers'][name], other['layers'][name])
      for name in names or ('attn', 'mlp')}}


def read_at(params, ids, layer):
  """Logits [V] that the head reads at the last token after a layer."""
  return after(
      params, before(params, ids, layer + 1), CONFIG.num_layers, slice(None))
