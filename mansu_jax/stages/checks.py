"""Checks that flags, data and model fit together, before any long work.

A flow calls `read` for its inputs, then the check of its mode:
`check_model_and_data`, `check_audit` or `check_attribute`. None of them needs
the weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import logging

from mansu_jax import tree_paths
from mansu_jax import types
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_select
from mansu_jax.config import mode_checks
from mansu_jax.config import run as run_config
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.runtime import processes
from mansu_jax.runtime import workdir
from mansu_jax.stages.circuit import edge_file
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.circuit import settings as settings_lib
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import quantizer_rules
from mansu_jax.stages.prepare import reteaching
from mansu_jax.stages.prepare import swapped_subjects
from mansu_jax.stages.prepare import token_checks
from mansu_jax.stages.train import closed_forms as closed_form_stage
from mansu_jax.stages.train import pools
from mansu_jax.stages.train import probe
from mansu_jax.unlearn import closed_forms
from mansu_jax.unlearn import forget as forget_lib
from mansu_jax.unlearn.forget import term

_DEFAULT_EDGES = run_config.CircuitConfig().edges


def read(config: run_config.RunConfig) -> inputs_lib.Inputs:
  """Checks the flags and the workdir, and reads the data. Collective.

  Raises:
    ValueError: As `mode_checks.check_unread_flags`, `quantizer_rules.check`,
      `inputs.read`, `reteaching.check` and `workdir.check_workdir`, in this
      order.
  """
  def read_inputs():
    mode_checks.check_unread_flags(config)
    quantizer_rules.check(
        config.quant_schemes, edits=config.circuit.selection != 'all' and
        config.mode in ('unlearn', 'plan'))
    found = inputs_lib.read(config)
    if config.mode != 'attribute':
      reteaching.check(config.eval, found, config.seed)
    return found

  inputs = processes.raise_on_all(read_inputs)
  if config.mode != 'plan':  # A plan has no workdir.
    workdir.check_workdir(config, inputs.hashes)
  return inputs


def check_model_and_data(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: types.Tokenizer | None
) -> None:
  """Checks that flags, data and model of an unlearning run fit together.

  Args:
    config: Configuration of the run.
    inputs: Data of the run.
    shapes: Configuration of the model.
    tokenizer: Tokenizer of the model, or None.

  Raises:
    ValueError: The model lacks the layers or is too small for the budget; it
      has no tokenizer; a question has no tokens or too many; or the questions
      make no attribution pairs, no probe, or none that the forget loss needs.
  """
  _check_circuit(config.circuit, config.attribution.level, shapes)
  quantizer_rules.check_shapes(config.quant_schemes, shapes)
  if tokenizer is None:
    raise ValueError(
        f'--model={config.model} has no tokenizer; wanted tokenizer.json beside'
        ' the weights. Copy it from the model that the weights belong to.')
  if config.data.chat:
    tokenization.check_template(tokenizer, config.model)
  token_checks.check_data(config.data, inputs, shapes, tokenizer)
  splits = inputs.splits
  pools.check_forget_term(
      config.unlearn, splits, tokenizer, seed=config.seed,
      chat=config.data.chat)
  refuses = forget_lib.needs(config.unlearn.loss) is term.Needs.REFUSALS
  if form := closed_forms.FORMS.get(config.method):
    refuses = form.reads_refusals
    config.unlearn.edited_layers(shapes.num_layers)
    closed_form_stage.check(config.method, splits)
  if refuses:
    token_checks.check_questions(
        pools.refused(splits.forget_train, config.seed), shapes, tokenizer,
        chat=config.data.chat)
  trained = config.circuit.first_layer or 0, shapes.num_layers
  if config.circuit.selection == 'all':
    trained = config.unlearn.trained_layers(shapes.num_layers)
  config.unlearn.for_layers(*trained, shapes.num_layers)
  if config.unlearn.stop_forget:
    probe.make(splits.forget_train, tokenizer, chat=config.data.chat,
               seed=config.seed)
  swapped_subjects.check(
      config.unlearn, splits, tokenizer, shapes.max_position, seed=config.seed,
      chat=config.data.chat)
  settings = settings_lib.Settings.from_run(config)
  _check_num_facts(config.eval.cad_pairs, 'forget', prompt_pairs.forget_pairs(
      settings, splits, tokenizer))
  if config.eval.cad_pairs or config.circuit.contrast:
    _check_num_facts(config.eval.cad_pairs, 'retain', prompt_pairs.retain_pairs(
        settings, splits, tokenizer))


def check_audit(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: types.Tokenizer | None
) -> None:
  """As `check_model_and_data`, for an audit, which may have no data.

  Raises:
    ValueError: As `check_model_and_data`, except that questions without
      attribution pairs are accepted unless --circuit_contrast needs pairs.
  """
  quantizer_rules.check_shapes(config.quant_schemes, shapes)
  questions_or_pairs = (
      *inputs.evaluation.values(), inputs.splits.forget_train,
      inputs.splits.retain_train, config.attribution.pairs_file)
  if config.data.chat and not any(questions_or_pairs):
    raise ValueError(
        '--data_chat has no effect in an audit without questions or pairs.'
        ' Leave it out.')
  if not any((*questions_or_pairs, inputs.heldout_text, inputs.calibration)):
    return
  if tokenizer is None:
    raise _no_tokenizer_error(
        config.base, config.model, calibrates=bool(inputs.calibration))
  if config.data.chat:
    tokenization.check_template(tokenizer, config.base)
  token_checks.check_data(config.data, inputs, shapes, tokenizer)
  settings = settings_lib.Settings.from_run(config)
  if prompt_pairs.why_none(
      settings, inputs.splits, tokenizer, cad_pairs=config.eval.cad_pairs):
    return
  _check_circuit(config.circuit, config.attribution.level, shapes)
  if config.circuit.contrast:
    _check_num_facts(config.eval.cad_pairs, 'retain', prompt_pairs.retain_pairs(
        settings, inputs.splits, tokenizer))


def _no_tokenizer_error(
    base: str, model: str, *, calibrates: bool) -> ValueError:
  """The error for an audit that must encode text without a tokenizer."""
  reason, without = 'the data need one', 'data'
  if calibrates:
    reason = 'a calibrated quantizer needs one to encode its text'
    without = 'data and calibrated quantizers'
  return ValueError(
      f'Neither --base={base} nor --model={model} has a tokenizer, but'
      f' {reason}; wanted tokenizer.json beside the weights of one. Copy it'
      f' there, or run without {without}.')


def check_attribute(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: types.Tokenizer | None
) -> None:
  """As `check_model_and_data`, for --mode=attribute.

  Raises:
    ValueError: There are no pairs, or no retain pairs for --circuit_contrast;
      the model cannot encode them; it lacks the layers, the budget or the
      edges; the circuit file does not fit it; or --data_chat has no effect.
  """
  splits, path = inputs.splits, config.attribution.pairs_file
  if not path and not splits.forget_train:
    raise ValueError(
        '--mode=attribute needs pairs of prompts; wanted a file of pairs'
        ' (--attribution_pairs_file=FILE.jsonl), or train questions of a forget'
        ' set to make pairs from (--data_forget).')
  if tokenizer is None and (not path or config.circuit.contrast):
    raise ValueError(
        f'--model={config.model} has no tokenizer to encode questions; wanted'
        ' tokenizer.json beside the weights, or pairs as token ids'
        ' (--attribution_pairs_file=FILE.jsonl) without --circuit_contrast,'
        ' whose pairs are made from questions.')
  if config.data.chat:
    tokenization.check_template(tokenizer, config.model)
  settings = settings_lib.Settings.from_run(config)
  pairs = prompt_pairs.forget_pairs(settings, splits, tokenizer)
  token_checks.check_pairs(pairs, path or 'the forget set', shapes)
  if config.circuit.resamples and not (path or config.circuit.file):
    token_checks.check_questions(
        [q for split in splits_lib.FORGOTTEN for q in splits.evaluation[split]],
        shapes, tokenizer, chat=config.data.chat)
  if config.circuit.contrast:
    token_checks.check_pairs(
        _retain_pairs(settings, splits, tokenizer), 'the retain set', shapes)
  if config.attribution.level != 'edge':
    _check_circuit(config.circuit, config.attribution.level, shapes)
  elif config.circuit.file:
    edge_file.read(config.circuit.file, shapes)
  else:
    _check_num_edges(config.circuit, shapes)
  if config.data.chat and path and not config.circuit.contrast:
    prompt_pairs.check_chat(config.attribution, tokenizer)


def _retain_pairs(
    settings: settings_lib.Settings, splits: splits_lib.Splits,
    tokenizer: types.Tokenizer | None) -> list[pairs_lib.AttributionPair]:
  """The retain pairs; a ValueError names --circuit_contrast."""
  try:
    return prompt_pairs.retain_pairs(settings, splits, tokenizer)
  except pairs_lib.NoPairs as error:
    raise ValueError(
        f'--circuit_contrast={settings.circuit.contrast} needs retain pairs:'
        f' {error}') from error


def _check_circuit(
    options: run_config.CircuitConfig, level: str,
    shapes: model_config.ModelConfig) -> None:
  """Raises ValueError if no layer is in range or no node fits the budget."""
  select.layer_range(options, shapes.num_layers)
  total = tree_paths.count(decoder.abstract(shapes))
  costs = graph.costs(shapes)
  smallest = min(costs[kind] for kind in graph.LEVEL_KINDS[level])
  if level == 'edge':  # One of the three matrices of a neuron.
    smallest = shapes.d_model
  if smallest > options.budget * total:
    raise ValueError(
        f'--circuit_budget={options.budget} of {total} weights is'
        f' {options.budget * total:.0f} weights, less than one node'
        f' ({smallest}). Raise the budget.')
  if level == 'edge':
    _check_num_edges(options, shapes)


def _check_num_edges(
    options: run_config.CircuitConfig, shapes: model_config.ModelConfig
) -> None:
  """Raises ValueError if the model has fewer edges than --circuit_edges.

  The default of the flag is allowed to exceed the edges of a small model.
  """
  allowed = edge_select.num_candidates(
      shapes, select.layer_range(options, shapes.num_layers),
      options.per_layer_cap)
  total = edge_select.num_candidates(shapes, range(shapes.num_layers), 1.0)
  if options.edges > allowed and options.edges == _DEFAULT_EDGES > total:
    logging.warning(
        'The model has %d edges, fewer than %d, the default of --circuit_edges:'
        ' the circuit contains all that connect to the logits.', total,
        options.edges)
  elif options.edges > allowed:
    raise ValueError(
        f'--circuit_edges={options.edges} exceeds the number of edges within'
        f' the given layers and cap; wanted at most {allowed}. Lower'
        ' --circuit_edges.')


def _check_num_facts(
    cad_pairs: int, role: str, pairs: Sequence[pairs_lib.AttributionPair]
) -> None:
  """Raises ValueError if CAD and AS-NC lack facts to resample.

  Args:
    cad_pairs: Value of --eval_cad_pairs.
    role: Name of the set that the pairs come from.
    pairs: Attribution pairs.
  """
  facts = {p.fact for p in pairs[:cad_pairs]}
  if cad_pairs and len(facts) < 2:
    raise ValueError(
        f'The first {min(len(pairs), cad_pairs)} attribution pairs of the'
        f' {role} set have {len(facts)} fact; CAD and AS-NC resample facts and'
        ' need 2. Raise --attribution_pairs or --eval_cad_pairs, add facts of'
        ' the same relation, or give --eval_cad_pairs=0 to skip them.')
