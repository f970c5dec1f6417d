"""What can be refused before long work: needs no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import pathlib
from typing import Any

from absl import logging

from mansu_jax import tree_paths
from mansu_jax.circuits import graph
from mansu_jax.circuits import select
from mansu_jax.circuits.edges import edge_select
from mansu_jax.config import run as run_config
from mansu_jax.data import batching
from mansu_jax.data import pairs as pairs_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.data import tokenization
from mansu_jax.models import config as model_config
from mansu_jax.models import decoder
from mansu_jax.runtime import processes
from mansu_jax.runtime import workdir
from mansu_jax.stages.circuit import edge_file
from mansu_jax.stages.circuit import prompt_pairs
from mansu_jax.stages.judge import quantizers
from mansu_jax.stages.prepare import inputs as inputs_lib
from mansu_jax.stages.prepare import swapped_subjects
from mansu_jax.stages.train import pools

_DEFAULT_EDGES = run_config.CircuitConfig().edges  # Where fewer are no error.


def read(config: run_config.RunConfig) -> inputs_lib.Inputs:
  """Checks flags and workdir, and reads the data: how every run starts.

  Raises:
    ValueError: as `check_unread_flags`, `quantizers.check`, `inputs.read` and
      `workdir.check_workdir`, in this order.
  """
  def read_inputs():
    check_unread_flags(config)
    quantizers.check(
        config.quant_schemes, edits=config.method == 'mansu' and
        config.mode in ('unlearn', 'plan'))
    return inputs_lib.read(config)

  inputs = processes.raise_on_all(read_inputs)
  if config.mode != 'plan':  # Which writes nothing.
    workdir.check_workdir(config, inputs.hashes)
  return inputs


def check_unread_flags(config: run_config.RunConfig) -> None:
  """Raises ValueError on a flag that this mode would silently ignore."""
  if config.mode == 'audit':
    _check_audit(config)
  elif config.mode == 'attribute':
    _check_trains_nothing(config)
    _check_only_attributes(config)
  _check_selection(config)
  if config.base and config.mode != 'audit':
    raise ValueError(
        f'--base={config.base} is for --mode=audit, but the mode is'
        f' {config.mode}; leave it out, and name the model with --model.')


def _check_audit(config: run_config.RunConfig) -> None:
  """Raises ValueError where an audit has no base, or flags to unlearn."""
  if not config.base:
    raise ValueError(
        f'--mode=audit measures --model={config.model} against what it was'
        ' before, but no base is named; wanted both. Give --base=B, a model'
        ' directory, hub id, .gguf file or wheel.')
  if _place(config.base) == _place(config.model):
    raise ValueError(
        f'--base={config.base} and --model={config.model} are one model; wanted'
        ' a model and what it was before. Name the unlearned one with --model.')
  _check_trains_nothing(config)


def _check_trains_nothing(config: run_config.RunConfig) -> None:
  for flag, value in _unlearning(config):
    raise ValueError(
        f'--{flag}={value} is for --mode=unlearn, but the mode is'
        f' {config.mode}, which trains nothing. Leave it out.')


def _check_only_attributes(config: run_config.RunConfig) -> None:
  """Raises ValueError on a flag of what attribute mode does not do."""
  for flag, value, why in _not_attribution(config):
    raise ValueError(
        f'--{flag}={value} changes nothing in --mode=attribute, {why}; leave it'
        ' out.')


def _check_selection(config: run_config.RunConfig) -> None:
  """Raises ValueError on a --circuit flag that this run ignores."""
  level, default = config.attribution.level, run_config.CircuitConfig()
  ignored = set() if level == 'edge' else {'edges', 'edge_selection'}
  if config.mode != 'attribute':
    ignored.add('curve_circuits')
  elif level == 'edge':
    ignored |= {'selection', 'budget'}
  if config.mode != 'attribute' or level != 'edge':
    ignored.add('file')
  where = f'in --mode={config.mode} with --attribution_level={level}'
  if config.circuit.file and 'file' not in ignored:
    ignored |= edge_file.IGNORED
    where += f' and --circuit_file={config.circuit.file}'
  for name in sorted(ignored):
    value = getattr(config.circuit, name)
    if value != getattr(default, name):
      raise ValueError(
          f'--circuit_{name}={value} changes nothing {where}; leave it out.')


def _place(name: str) -> str:
  """The same for all names of one directory or file."""
  path = pathlib.Path(name)
  return str(path.resolve()) if path.exists() else name


def _unlearning(config: run_config.RunConfig) -> Iterator[tuple[str, Any]]:
  """Flags that only unlearning reads, where they are not the defaults."""
  default = run_config.RunConfig()
  if config.method != default.method:
    yield 'method', config.method
  if config.data.text:
    yield 'data_text', config.data.text[0]
  for stage in ('fisher', 'edit', 'unlearn'):
    given, usual = getattr(config, stage), getattr(default, stage)
    for field in dataclasses.fields(given):
      value = getattr(given, field.name)
      if value != getattr(usual, field.name):
        yield f'{stage}_{field.name}', value


def _not_attribution(
    config: run_config.RunConfig) -> Iterator[tuple[str, Any, str]]:
  """Flags that attribution does not read, not the defaults, and why."""
  default = run_config.RunConfig()
  if config.quant_schemes != default.quant_schemes:
    yield ('quant_schemes', ','.join(config.quant_schemes),
           'which quantizes nothing')
  if config.fail_on_verdict:
    yield 'fail_on_verdict', True, 'which has no verdict'
  measured = 'which measures nothing but a circuit'
  for name in ('heldout', 'heldout_text', 'calibration'):
    if files := getattr(config.data, name):
      yield f'data_{name}', files[0], measured
  if config.data.text_window != default.data.text_window:
    yield 'data_text_window', config.data.text_window, 'which reads no text'
  from_file = config.attribution.pairs_file
  if from_file and config.data.forget:
    yield ('data_forget', config.data.forget[0],
           f'whose pairs are those of {from_file}')
  if from_file and config.data.retain and not config.circuit.contrast:
    yield ('data_retain', config.data.retain[0],
           f'whose pairs are those of {from_file}, without'
           ' --circuit_contrast')
  unread = {field.name: measured for field in dataclasses.fields(config.eval)}
  resampled = config.circuit.resamples and not config.circuit.file
  if resampled:
    del unread['bootstrap']
  else:
    unread['bootstrap'] = 'where pairs are not resampled'
  if resampled and not from_file:
    del unread['questions']
  else:
    unread['questions'] = 'where no other phrasings are compared'
  for name, why in unread.items():
    value = getattr(config.eval, name)
    if value != getattr(default.eval, name):
      yield f'eval_{name}', value, why


def check_model_and_data(
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
  quantizers.check_shapes(config.quant_schemes, shapes)
  if tokenizer is None:
    raise ValueError(
        f'--model={config.model} has no tokenizer; wanted tokenizer.json beside'
        ' the weights. Copy it from the model that the weights belong to.')
  if config.data.chat:
    tokenization.check_template(tokenizer, config.model)
  _check_data(config, inputs, shapes, tokenizer)
  splits = inputs.splits
  pools.check_forget_term(
      config.unlearn, splits.forget_train, tokenizer, seed=config.seed,
      chat=config.data.chat)
  swapped_subjects.check(config, splits, tokenizer, shapes.max_position)
  sources = config.attribution, splits, tokenizer
  drawn = dict(seed=config.seed, chat=config.data.chat)
  _check_pairs(config, 'forget', prompt_pairs.forget_pairs(*sources, **drawn))
  if config.eval.cad_pairs or config.circuit.contrast:
    _check_pairs(config, 'retain', prompt_pairs.retain_pairs(
        *sources, **drawn))


def check_audit(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: Any) -> None:
  """As `check_model_and_data`, of what an audit needs: without data, nothing.

  Raises:
    ValueError: as `check_model_and_data`; but questions that make no pairs are
      allowed, unless --circuit_contrast asks for them.
  """
  quantizers.check_shapes(config.quant_schemes, shapes)
  asked = (*inputs.evaluation.values(), inputs.splits.forget_train,
           inputs.splits.retain_train, config.attribution.pairs_file)
  if config.data.chat and not any(asked):
    raise ValueError(
        '--data_chat changes nothing in an audit without questions or pairs;'
        ' leave it out.')
  if not any((*asked, inputs.heldout_text, inputs.calibration)):
    return
  if tokenizer is None:
    needed, out = 'there are data to encode', 'the data'
    if inputs.calibration:
      needed = 'a calibrated quantizer has text to encode'
      out = 'that quantizer and the data'
    raise ValueError(
        f'Neither --base={config.base} nor --model={config.model} has a'
        f' tokenizer, but {needed}; wanted tokenizer.json beside the weights of'
        f' one. Copy it there, or leave {out} out.')
  if config.data.chat:
    tokenization.check_template(tokenizer, config.base)
  _check_data(config, inputs, shapes, tokenizer)
  sources = config.attribution, inputs.splits, tokenizer
  drawn = dict(seed=config.seed, chat=config.data.chat)
  if prompt_pairs.why_none(
      *sources, cad_pairs=config.eval.cad_pairs, **drawn):
    return
  _check_circuit(config, shapes)
  if config.circuit.contrast:
    _check_pairs(config, 'retain', prompt_pairs.retain_pairs(
        *sources, **drawn))


def check_attribute(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: Any) -> None:
  """As `check_model_and_data`, of attribution alone.

  Raises:
    ValueError: there are no pairs, or no retain pairs for --circuit_contrast;
      the model lacks their tokens, or the layers, budget or edges; the circuit
      file is of another model; or --data_chat changes nothing.
  """
  splits, path = inputs.splits, config.attribution.pairs_file
  sources = config.attribution, splits, tokenizer
  drawn = dict(seed=config.seed, chat=config.data.chat)
  if not path and not splits.forget_train:
    raise ValueError(
        '--mode=attribute needs pairs of prompts: give a file of them'
        ' (--attribution_pairs_file=FILE.jsonl), or train questions of a forget'
        ' set (--data_forget).')
  if tokenizer is None and (not path or config.circuit.contrast):
    raise ValueError(
        f'--model={config.model} has no tokenizer to encode questions; wanted'
        ' tokenizer.json beside the weights, or pairs as token ids'
        ' (--attribution_pairs_file=FILE.jsonl) and no --circuit_contrast, whose'
        ' pairs are made of questions.')
  if config.data.chat:
    tokenization.check_template(tokenizer, config.model)
  pairs = prompt_pairs.forget_pairs(*sources, **drawn)
  _check_ids(pairs, path or 'the forget set', shapes)
  if config.circuit.resamples and not (path or config.circuit.file):
    _check_tokens([q for split in splits_lib.FORGOTTEN for q in
                   splits.evaluation[split]], config, tokenizer, shapes)
  if config.circuit.contrast:
    try:
      retain = prompt_pairs.retain_pairs(*sources, **drawn)
    except pairs_lib.NoPairs as error:
      raise ValueError(f'--circuit_contrast={config.circuit.contrast} needs'
                       f' retain pairs: {error}') from error
    _check_ids(retain, 'the retain set', shapes)
  if config.attribution.level != 'edge':
    _check_circuit(config, shapes)
  elif config.circuit.file:
    edge_file.read(config.circuit.file, shapes)
  else:
    _check_edges(config, shapes)
  if config.data.chat and path and not config.circuit.contrast:
    prompt_pairs.check_chat(config.attribution, tokenizer)


def _check_edges(
    config: run_config.RunConfig, shapes: model_config.ModelConfig) -> None:
  """Raises ValueError where there are not as many edges as wanted."""
  options = config.circuit
  most = edge_select.num_candidates(
      shapes, select.layer_range(options, shapes.num_layers),
      options.per_layer_cap)
  whole = edge_select.num_candidates(shapes, range(shapes.num_layers), 1.0)
  if options.edges > most and options.edges == _DEFAULT_EDGES > whole:
    logging.warning(
        'The model has %d edges, fewer than the %d that --circuit_edges is by'
        ' default: the circuit holds all that lead somewhere.', whole,
        options.edges)
  elif options.edges > most:
    raise ValueError(
        f'--circuit_edges={options.edges}, but the model has {most} within the'
        ' layers and the cap that are given; wanted no more. Lower it.')


def _check_ids(
    pairs: Sequence[pairs_lib.AttributionPair], where: str,
    shapes: model_config.ModelConfig) -> None:
  """Raises ValueError on a pair that the model cannot read."""
  for i, pair in enumerate(pairs):
    ids = (*pair.clean_ids, *pair.corrupt_ids, pair.answer_id,
           pair.corrupt_answer_id)
    if max(ids) >= shapes.vocab_size or (
        len(pair.clean_ids) > shapes.max_position):
      raise ValueError(
          f'{where}: pair {i + 1} has token {max(ids)} and'
          f' {len(pair.clean_ids)} tokens, but the model knows'
          f' {shapes.vocab_size} tokens and {shapes.max_position} positions;'
          ' wanted less. Encode it with the tokenizer of the model.')


def _check_data(
    config: run_config.RunConfig, inputs: inputs_lib.Inputs,
    shapes: model_config.ModelConfig, tokenizer: Any) -> None:
  """Raises ValueError where questions or texts do not become tokens."""
  splits = inputs.splits
  trained = [*splits.forget_train, *splits.retain_train]
  asked = [q for questions in inputs.evaluation.values() for q in questions]
  _check_tokens(trained + asked, config, tokenizer, shapes)
  for documents in filter(None, (
      splits.text, inputs.heldout_text, inputs.calibration)):
    batching.text_windows(documents, tokenizer, config.data.text_window)


def _check_circuit(
    config: run_config.RunConfig, shapes: model_config.ModelConfig) -> None:
  """Raises ValueError where no layer is in range or no node in budget."""
  options = config.circuit
  select.layer_range(options, shapes.num_layers)
  total = tree_paths.count(decoder.abstract(shapes))
  costs, level = graph.costs(shapes), config.attribution.level
  least = min(costs[k] for k in graph.LEVEL_KINDS[level])
  if level == 'edge':  # A neuron may move in one of its three parts.
    least = shapes.d_model
  if least > options.budget * total:
    raise ValueError(
        f'--circuit_budget={options.budget} of {total} weights is'
        f' {options.budget * total:.0f} weights, less than one node'
        f' ({least}); raise the budget.')
  if level == 'edge':
    _check_edges(config, shapes)


def _check_tokens(
    questions: Sequence[Any], config: run_config.RunConfig, tokenizer: Any,
    shapes: model_config.ModelConfig) -> None:
  """Raises ValueError where a question's tokens are not the model's."""
  for question, encoded in zip(questions, tokenization.encode_questions(
      questions, tokenizer, chat=config.data.chat)):
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
