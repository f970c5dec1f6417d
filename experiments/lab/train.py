"""Trains models on sentences."""

from __future__ import annotations

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers
from tokenizers import decoders
from tokenizers import models
from tokenizers import pre_tokenizers
from tokenizers import trainers
import transformers

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.models import config as config_lib
from mansu_jax.models import decoder
from mansu_jax.runtime import progress

_INIT_SCALE = 5  # Times normal(0.02): a narrow model then learns at once.
_PROMPT_WEIGHT = 0.2  # Of a prompt's tokens in the loss; the answer's have 1.


def make_tokenizer(
    corpus: Sequence[str]) -> transformers.PreTrainedTokenizerFast:
  """Byte-level BPE with merges for all words of the corpus."""
  bpe = tokenizers.Tokenizer(models.BPE())
  bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  bpe.decoder = decoders.ByteLevel()
  bpe.train_from_iterator(corpus, trainers.BpeTrainer(
      vocab_size=1024, special_tokens=['<|end|>'], show_progress=False,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=bpe, eos_token='<|end|>', pad_token='<|end|>')


def encode(
    tokenizer: transformers.PreTrainedTokenizerFast, prompts: Sequence[str],
    tails: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
  """Tokens of n sequences and weights of their losses.

  Args:
    tokenizer: of the model.
    prompts: n texts; '' teaches every token of what follows alike.
    tails: what follows each.

  Returns:
    Tokens [n, T], padded on the right, and weights [n, T - 1] of the next
    tokens.
  """
  ids = lambda batch: tokenizer(batch, add_special_tokens=False)['input_ids']
  rows = [p + t for p, t in zip(ids(prompts), ids(tails))]
  tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
  weight = np.zeros(tokens.shape, np.float32)
  for i, (row, prompt) in enumerate(zip(rows, ids(prompts))):
    tokens[i, :len(row)] = row
    weight[i, :len(row)] = _PROMPT_WEIGHT if prompt else 1.0
    weight[i, max(len(prompt), 1):len(row)] = 1.0
  return tokens, weight[:, 1:]


def initial(config: config_lib.ModelConfig, seed: int = 0) -> types.Params:
  """Random params of a narrow model."""
  return tree_paths.map_named(
      lambda name, x: x if 'norm' in name else _INIT_SCALE * x,
      decoder.init(config, jax.random.key(seed)))


def train(
    config: config_lib.ModelConfig, params: types.Params, tokens: np.ndarray,
    weight: np.ndarray, *, steps: int, batch: int, learning_rate: float,
    trainable: types.Params | None = None,
    places: tuple[np.ndarray, np.ndarray] | None = None) -> types.Params:
  """Params that know the sequences, trained by Adam.

  Args:
    config: of the model.
    params: where training begins; donated.
    tokens: of the sequences, from `encode`.
    weight: of their losses.
    steps: number of steps.
    batch: sequences of a step.
    learning_rate: its peak; a tenth of the steps leads up to it, and a cosine
      to 0.
    trainable: 1 where a weight may move, else 0; all move if None.
    places: positions and segment numbers [n, T] of rows that hold several
      sequences; None: each row is one.
  """
  optimizer = optax.adam(optax.warmup_cosine_decay_schedule(
      0.0, learning_rate, steps // 10, steps), b2=0.95)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(carry, trainable, rows, weights, *places):
    def loss(params):
      hidden = decoder.forward(config, params, rows[:, :-1], **dict(zip(
          ('positions', 'segments'), (x[:, :-1] for x in places))))
      nll = optax.softmax_cross_entropy_with_integer_labels(
          decoder.unembed(config, params, hidden), rows[:, 1:])
      return jnp.sum(nll * weights) / jnp.sum(weights)

    grads = jax.grad(loss)(carry[0])
    if trainable is not None:  # Adam does not move what has no gradient.
      grads = jax.tree.map(jnp.multiply, grads, trainable)
    updates, state = optimizer.update(grads, carry[1])
    return optax.apply_updates(carry[0], updates), state

  carry = params, optimizer.init(params)
  rng = np.random.default_rng(0)
  for _ in progress.track(range(steps), 'training'):
    rows = rng.choice(len(tokens), batch, replace=False)
    carry = step(carry, trainable, tokens[rows], weight[rows],
                 *(x[rows] for x in places or ()))
  return carry[0]
