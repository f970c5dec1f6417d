"""What can be refused before long work: needs no weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mansu_jax import config as run_config
from mansu_jax import quant
from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.data import batching
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import tokenization
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.stages import attribution
from mansu_jax.stages import crossing
from mansu_jax.stages import inputs as inputs_lib
from mansu_jax.stages import training


def unused(config: run_config.RunConfig) -> None:
  """Raises ValueError on a flag that this mode would silently ignore."""
  if config.base and config.mode != 'audit':
    raise ValueError(
        f'--base={config.base} is for --mode=audit, but the mode is'
        f' {config.mode}; leave it out, and name the model to unlearn with'
        ' --model.')
  if config.profile:
    raise ValueError('--profile is not built yet; leave it out.')


def quantizers(config: run_config.RunConfig) -> None:
  """Raises ValueError on an unknown or repeated `--quant_schemes`."""
  names = config.quant_schemes
  unknown = [name for name in names if name not in quant.SCHEMES]
  if unknown:
    raise ValueError(
        f'--quant_schemes={",".join(names)} has {unknown[0]!r}; wanted some of'
        f' {", ".join(sorted(quant.SCHEMES))}, separated by commas. Correct the'
        ' name.')
  if len(set(names)) < len(names):
    raise ValueError(
        f'--quant_schemes={",".join(names)} repeats a quantizer; wanted each'
        ' once. Drop the repetition.')


def fit(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: Any) -> None:
  """Checks that flags, data and model fit each other.

  Args:
    config: the run's.
    inputs: its data.
    shapes: the model's config.
    tokenizer: the model's, or None where it has none.

  Raises:
    ValueError: layers or budget that the model does not have, no tokenizer,
      questions without tokens or too long, or questions that make no
      attribution pairs or exchange partners.
  """
  _check_circuit(config, shapes)
  if tokenizer is None:
    raise ValueError(
        f'--model={config.model} has no tokenizer; wanted tokenizer.json beside'
        ' the weights. Copy it from the model that the weights belong to.')
  splits = inputs.splits
  trained = [*splits.forget_train, *splits.retain_train]
  asked = [q for questions in inputs.evaluation.values() for q in questions]
  _check_tokens(trained + asked, tokenizer, shapes)
  for documents in filter(None, (splits.text, inputs.heldout_text)):
    batching.text_windows(documents, tokenizer, config.data.text_window)
  training.check_forget_term(config, inputs, tokenizer)
  crossing.check(config, splits, tokenizer, shapes.max_position)
  _check_pairs(config, 'forget', attribution.forget_pairs(
      config, splits, tokenizer))
  if config.eval.cad_pairs or config.circuit.contrast:
    _check_pairs(config, 'retain', attribution.retain_pairs(
        config, splits, tokenizer))


def _check_circuit(
    config: run_config.RunConfig, shapes: model_config.ModelConfig) -> None:
  """Raises ValueError where no layer is in range or no node in budget."""
  options = config.circuit
  select.layer_range(options, shapes.num_layers)
  total = tree_paths.count(decoder.abstract(shapes))
  costs = graph.costs(shapes)
  least = min(costs[k] for k in graph.LEVEL_KINDS[config.attribution.level])
  if least > options.budget * total:
    raise ValueError(
        f'--circuit_budget={options.budget} of {total} weights is'
        f' {options.budget * total:.0f} weights, less than one node'
        f' ({least}); raise the budget.')


def _check_tokens(
    questions: Sequence[Any], tokenizer: Any,
    shapes: model_config.ModelConfig) -> None:
  """Raises ValueError where a question's tokens are not the model's."""
  for question, encoded in zip(questions, tokenization.encode_questions(
      questions, tokenizer)):
    ids = [*encoded.prompt, *(i for c in encoded.choices for i in c)]
    length = len(encoded.prompt) + max(map(len, encoded.choices))
    where = question.source or question.id
    if max(ids) >= shapes.vocab_size:
      raise ValueError(
          f'{where}: the tokenizer gives token {max(ids)}, but the model knows'
          f' {shapes.vocab_size}; wanted ids below that. Use the tokenizer'
          ' that belongs to the weights.')
    if length > shapes.max_position:
      raise ValueError(
          f'{where}: has {length} tokens, but the model knows positions up to'
          f' {shapes.max_position}; wanted at most that. Shorten the prompt.')


def _check_pairs(
    config: run_config.RunConfig, role: str,
    pairs: Sequence[pairs_lib.AttributionPair]) -> None:
  """Raises ValueError where CAD or AS-NC could not resample the pairs."""
  facts = {p.fact for p in pairs[:config.eval.cad_pairs]}
  if config.eval.cad_pairs and len(facts) < 2:
    raise ValueError(
        f'The first {min(len(pairs), config.eval.cad_pairs)} attribution pairs'
        f' of the {role} set are of {len(facts)} fact; CAD and AS-NC resample'
        ' facts and need 2. Raise --attribution_pairs or --eval_cad_pairs, add'
        ' facts of the same relation, or give --eval_cad_pairs=0 to skip'
        ' them.')
