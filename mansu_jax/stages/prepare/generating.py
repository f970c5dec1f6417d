"""A model's generator, and for plans the programs that it runs."""

from __future__ import annotations

from collections.abc import Sequence
import functools

from mansu_jax.eval import generation
from mansu_jax.models import cached
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.runtime import programs
from mansu_jax.stages.prepare import abstract


def make(config: model_config.ModelConfig) -> generation.Generator:
  """A generator for models of one config."""
  return generation.Generator(
      functools.partial(cached.prefill, config),
      functools.partial(cached.extend, config),
      functools.partial(decoder.unembed, config))


def programs_of(
    model: abstract.AbstractModel, batches: Sequence[generation.Batch],
    most: int, *, models: int, at_most: bool = False) -> programs.Programs:
  """Continues batches of prompts with some models."""
  generator = make(model.config)
  for batch, count in generation.shapes(batches):
    yield from _continue(
        model, generator, batch, most, calls=count * models, at_most=at_most)


def _continue(
    model: abstract.AbstractModel, generator: generation.Generator,
    batch: generation.Batch, most: int, *, calls: int, at_most: bool
) -> programs.Programs:
  """Runs `calls` batches of one shape."""
  rows, start = map(programs.shapes_of, (batch.rows, batch.start))
  token, cache = yield programs.program(
      'prompts', generator.prefill, model.params, *programs.shapes_of(
          batch.beginnings or batch.rows), calls=calls, at_most=at_most,
      slots=batch.slots)
  if batch.beginnings:
    token, cache = yield programs.program(
        'prompts after beginnings', generator.extend, model.params, cache,
        programs.shapes_of(batch.owner), rows.tokens, start, rows.length,
        calls=calls, at_most=at_most)
  count, steps = generation.decode_calls(most)
  if count:
    yield programs.program(
        'next tokens', generator.decode, model.params, token, start, cache,
        calls=count * calls, at_most=True, steps=steps)
