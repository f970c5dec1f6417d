"""A tiny model, sequences of several lengths, and how they are packed."""

import functools

import jax
import numpy as np

from mansu_jax.circuits import graph
from mansu_jax.config import run as run_config
from mansu_jax.data import packing
from mansu_jax.models import decoder
from mansu_jax.models.io import loading
from mansu_jax.stages.train import edits
from mansu_jax.unlearn import batches
from mansu_jax.unlearn import step_data
from tests.circuits import small

CONFIG = small.config()


@functools.cache  # Compiling is most of what these tests cost.
def model(seed=0):
  return loading.LoadedModel(CONFIG, jax.tree.map(
      jax.numpy.asarray, small.params(CONFIG, seed)), None, {})


def options(**changes):
  return run_config.UnlearnConfig(**dict(
      loss='npo', forget_weight=1.0, fp_steps=1, optimizer='adam',
      learning_rate=4e-3, forget_batch=12, retain_batch=12, text_batch=2,
      nearest_share=0.25, swapped_batch=0) | changes)


def sequences(lengths, prompts, seed):
  """Tokens [n, T] and the mask of positions that predict the answer."""
  rng = np.random.default_rng(seed)
  tokens = np.zeros((len(lengths), max(lengths) + 2), np.int32)
  mask = np.zeros(tokens.shape, bool)
  for i, (length, prompt) in enumerate(zip(lengths, prompts)):
    tokens[i, :length] = rng.integers(1, CONFIG.vocab_size, length)
    mask[i, prompt - 1:length - 1] = True
  return tokens, mask


@functools.cache
def hidden_of_model():
  """`batches.HiddenFn` of the model."""
  run = jax.jit(lambda params, tokens, positions, segments: decoder.forward(
      CONFIG, params, tokens, positions=positions, segments=segments))
  return lambda *packed: run(model().params, *packed)


FORGET = sequences([6, 9, 4], [4, 5, 3], seed=1)
RETAIN = sequences([5, 7], [2, 6], seed=2)
TEXT = sequences([8, 3], [1, 1], seed=3)
REFUSALS = sequences([7, 8, 6], [4, 5, 3], seed=4)
REFUSALS[0][:, :3] = FORGET[0][:, :3]  # The same beginnings.
PROMPTS = (FORGET[0], np.arange(FORGET[0].shape[1]) < FORGET[1].argmax(
    1)[:, None])


def spans(hidden, tokens, mask):
  return batches.add_reference(
      batches.make_spans(tokens, mask), hidden, packing.fill_rows,
      batch_rows=2)


def batch(hidden, *, alone=False, rows=None, routed=False, refusals=False):
  """All sequences in one batch; with `alone`, one sequence per row.

  With `routed`, the forget sequences have the first row to run it again.
  """
  fill = packing.fill_rows
  if alone:
    fill = lambda lengths, capacity: [[i] for i in range(len(lengths))]
  groups = [spans(hidden, *part) for part in (
      FORGET, RETAIN, TEXT, *([REFUSALS] if refusals else []))]
  prompts = spans(hidden, *PROMPTS)
  packed, starts = batches.pack(groups, fill, rows)
  if routed:
    (first, own), (rest, others) = (
        batches.pack(part) for part in (groups[:1], groups[1:]))
    packed = step_data.Packed(*map(np.concatenate, zip(first, rest)))
    starts = own + [x + first.tokens.size for x in others]
  parts = [batches.targets(g, s) for g, s in zip(groups, starts)]
  return step_data.Batch(
      packed, *parts[:3], prompts=batches.targets(prompts, starts[0]),
      refusals=parts[3] if refusals else None,
      routed=np.arange(1) if routed else None)


@functools.cache
def circuit_edit(*, schemes=('nf4',), quantized_views=True,
                 kinds=graph.KINDS, mover=None):
  return edits.circuit_edit(
      model(), small.circuit(CONFIG, kinds), schemes,
      quantized_views=quantized_views, mover=mover)
