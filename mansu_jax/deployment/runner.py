"""Runs a deployment check: every scheme in its real engine and simulated."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
import importlib.metadata
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from mansu_jax import types
from mansu_jax.data import tokenization
from mansu_jax.deployment import bnb
from mansu_jax.deployment import compare
from mansu_jax.deployment import extras
from mansu_jax.deployment import items as items_lib
from mansu_jax.deployment import llamacpp
from mansu_jax.deployment import schemes as schemes_lib
from mansu_jax.deployment import scoring_plan
from mansu_jax.deployment import simulator as simulator_lib
from mansu_jax.eval import accuracy
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_writer
from mansu_jax.models.io import loading
from mansu_jax.runtime import environment


def check_schemes(schemes: Sequence[str]) -> None:
  """Checks that this machine can run some schemes.

  Args:
    schemes: Names from `schemes.ALL`.

  Raises:
    ValueError: A scheme is unknown, its packages are not installed, or the CPU
      lacks its kernel.
  """
  unknown = sorted(set(schemes) - set(schemes_lib.ALL))
  if unknown or not schemes:
    raise ValueError(
        f'--schemes has {unknown or "none"}; wanted some of'
        f' {list(schemes_lib.ALL)}.')
  extras.require(schemes_lib.extras(schemes), alternative=(
      'Or remove the schemes that need them from'
      f' --schemes={",".join(schemes)}.'))
  bf16 = [s for s in schemes if s.endswith(schemes_lib.BF16)]
  if bf16 and not bnb.has_bf16_kernel():
    raise ValueError(
        f'--schemes has {bf16}, but bitsandbytes has no bfloat16 kernel for'
        ' this CPU; wanted a CPU with AVX512-BF16. Leave these schemes out.')


def check_model(
    folder: pathlib.Path, schemes: Sequence[str],
    ignore_fields: Collection[str] = ()) -> None:
  """Checks that a model can be asked under some schemes.

  Args:
    folder: Hugging Face directory of the model.
    schemes: Names from `schemes.ALL`.
    ignore_fields: As in `loading.load`.

  Raises:
    ValueError: The model is not supported, or cannot be written as GGUF.
  """
  _, config, _ = loading.find_config(str(folder), ignore_fields)
  of_gguf = [s for s in schemes if s not in schemes_lib.BITSANDBYTES]
  if of_gguf and config.family != 'llama':
    raise ValueError(
        f'--schemes has {of_gguf}, and {folder} is of the family'
        f' {config.family!r}; wanted the Llama family, the only one that this'
        ' version writes as GGUF. Give --schemes=nf4,fp4.')


class Runner:
  """Checks schemes of one model on the same items.

  Attributes:
    model_sha256: of the model's files.
  """

  def __init__(
      self, folder: pathlib.Path, items: items_lib.Items,
      gguf_folder: pathlib.Path, ignore_fields: Collection[str] = ()):
    """Loads the model and encodes the items.

    Args:
      folder: Hugging Face directory of the model.
      items: Questions.
      gguf_folder: Existing folder for GGUF files.
      ignore_fields: As in `loading.load`.

    Raises:
      ValueError: The folder holds no model, or a model without a tokenizer.
    """
    self._folder, self._items, self._gguf_folder = folder, items, gguf_folder
    model = loading.load(str(folder), ignore_fields=ignore_fields)
    if model.tokenizer is None:
      raise ValueError(
          f'{folder} holds no tokenizer; wanted a tokenizer.json. Export the'
          ' model with its tokenizer.')
    self.model_sha256 = model.source['sha256']
    self._simulator = simulator_lib.Simulator(
        model, items.questions, chat=items.chat)
    self._plan = scoring_plan.ScoringPlan(
        items.questions, model.tokenizer, chat=items.chat)
    # How GGUF files split words; None before the first file, '' without a
    # vocabulary.
    self._word_rule: str | None = None

  def __call__(self, scheme: str) -> dict[str, Any]:
    """Checks one scheme.

    Args:
      scheme: Name from `schemes.ALL`.

    Returns:
      The JSON-able result of `compare.compare_answers` with details of the
      engine, and `agrees`: whether simulator and engine agree.
    """
    start = time.monotonic()
    run = (self._run_bitsandbytes if scheme in schemes_lib.BITSANDBYTES
           else self._run_llamacpp)
    found = run(scheme)
    exact = scheme in schemes_lib.EXACT
    judged = found.get('rounded_activations') or found
    same_answers = found['same_answers'] if exact else judged['zero_inside']
    weights = found['weights']
    agrees = same_answers and weights is not None and not weights['differing']
    return found | {'exact': exact, 'agrees': agrees,
                    'seconds': round(time.monotonic() - start, 1)}

  def _simulated(
      self, precision: str, quantized: types.Params | None,
      scores: accuracy.Scores | None = None
  ) -> tuple[str, items_lib.Answers]:
    """The simulator's answers: recorded by the run, or computed here.

    Args:
      precision: Name under which the run recorded them.
      quantized: Weights of the simulator; None if it lacks the scheme.
      scores: Scores of the same weights, or of weights that replace them.

    Returns:
      The source of the answers, and the answers.
    """
    if precision in self._items.recorded:
      return 'answers.jsonl', self._items.recorded[precision]
    source = 'simulator' if quantized is not None else 'the file, dequantised'
    if scores is None:
      scores = self._simulator(quantized)
    return source, items_lib.Answers.from_scores(scores)

  def _compare(
      self, simulated: items_lib.Answers, real: accuracy.Scores
  ) -> dict[str, Any]:
    return compare.compare_answers(self._items, simulated, real)

  def _summarize(
      self, scores: accuracy.Scores, real: accuracy.Scores) -> dict[str, Any]:
    """As `_compare`, with the number of differing items in place of a list."""
    found = self._compare(items_lib.Answers.from_scores(scores), real)
    return found | {'differing': len(found['differing'])}

  def _run_bitsandbytes(self, name: str) -> dict[str, Any]:
    """Checks a scheme of bitsandbytes."""
    scheme = name.removesuffix(schemes_lib.BF16)
    model = bnb.load(self._folder, scheme, bf16=name != scheme)
    quantized = self._simulator.quantize(scheme)
    config = self._simulator.model.config
    weights = simulator_lib.count_differing_weights(
        bnb.read_params(model, config), quantized, config)
    source, simulated = self._simulated(scheme, quantized)
    real = self._plan.score(bnb.Engine(model))
    return self._compare(simulated, real) | {
        'simulated_by': source, 'weights': weights,
        'misread_matrices': len(bnb.misread_matrices(model))}

  def _run_llamacpp(self, scheme: str) -> dict[str, Any]:
    """Checks a scheme of llama.cpp."""
    path = self._make_gguf(scheme)
    config = self._simulator.model.config
    stored = gguf_io.read_params(gguf_io.open_file(path), config, np.float32)
    quantized, note = self._try_quantize(scheme)
    weights = None if quantized is None else (
        simulator_lib.count_differing_weights(stored, quantized, config))
    same_weights = self._simulator(stored)
    source, simulated = self._simulated(
        'fp' if scheme == schemes_lib.UNQUANTIZED else scheme, quantized,
        same_weights if weights is None or not weights['differing'] else None)
    rounded = self._score_rounded(scheme, path, stored)
    del stored, quantized
    real, num_differing_prompts = self._run_gguf(path)
    return self._compare(simulated, real) | {
        'simulated_by': source, 'note': note, 'weights': weights,
        'stored_types': llamacpp.stored_types(path),
        'word_rule': self._word_rule,
        'prompts_tokenized_differently': num_differing_prompts,
        'same_weights': self._summarize(same_weights, real),
        'rounded_activations': rounded and self._summarize(rounded, real)}

  def _score_rounded(
      self, scheme: str, path: pathlib.Path, stored: types.Params
  ) -> accuracy.Scores | None:
    """Simulated scores with 8-bit activations; None if llama.cpp has none."""
    if scheme == schemes_lib.UNQUANTIZED:
      return None
    return self._simulator.score_with_rounded_activations(
        stored, llamacpp.types_by_input_size(path))

  def _run_gguf(
      self, path: pathlib.Path) -> tuple[accuracy.Scores, int | None]:
    """Scores by llama.cpp, and the result of `_count_differing_prompts`."""
    longest = max(len(r.tokens) for r in self._plan.requests)
    with llamacpp.Engine(path, longest) as engine:
      return self._plan.score(engine), self._count_differing_prompts(engine)

  def _try_quantize(self, scheme: str) -> tuple[types.Params | None, str]:
    """The simulator's weights, or None and the reason."""
    if scheme == schemes_lib.UNQUANTIZED:
      return self._simulator.model.params, ''
    try:
      return self._simulator.quantize(scheme), ''
    except ValueError as error:
      return None, f'not simulated: {error}'

  def _make_gguf(self, scheme: str) -> pathlib.Path:
    """Writes the GGUF file of a scheme; returns its path."""
    plain = self._gguf_folder / f'{schemes_lib.UNQUANTIZED}.gguf'
    if self._word_rule is None or not plain.exists():
      model = self._simulator.model
      self._word_rule = gguf_writer.write(
          plain, model.config, model.params, model.tokenizer) or ''
    if scheme == schemes_lib.UNQUANTIZED:
      return plain
    path = self._gguf_folder / f'{scheme}.gguf'
    llamacpp.quantize(plain, path, scheme)
    return path

  def _count_differing_prompts(self, engine: llamacpp.Engine) -> int | None:
    """Counts prompts that llama.cpp tokenizes differently.

    Args:
      engine: Engine of a file that this runner wrote.

    Returns:
      The number of prompts; None if the file has no vocabulary.
    """
    if not self._word_rule:
      return None
    tokenizer = self._simulator.model.tokenizer
    prompts = [tokenization.prompt_text(
        q.prompt, tokenizer, chat=self._items.chat)
               for q in self._items.questions]
    ours = tokenization.encode(prompts, tokenizer)
    return sum(engine.tokenize(p) != ids for p, ids in zip(prompts, ours))


def run(
    folder: pathlib.Path, items: items_lib.Items, schemes: Sequence[str],
    out: pathlib.Path, keep_gguf: bool, ignore_fields: Collection[str] = ()
) -> Iterator[dict[str, Any]]:
  """Checks one scheme after another.

  Args:
    folder: Hugging Face directory of the model.
    items: Questions.
    schemes: Names from `schemes.ALL`.
    out: Existing folder; GGUF files go in it.
    keep_gguf: Whether to keep the GGUF files, in `out/gguf`.
    ignore_fields: As in `loading.load`.

  Yields:
    The content of `deployment.json` after each scheme.

  Raises:
    ValueError: See `check_schemes`, `Runner` and the engines.
  """
  check_schemes(schemes)
  versions = {name: importlib.metadata.version(name)
              for name in schemes_lib.packages(schemes)}
  described = environment.describe()
  with tempfile.TemporaryDirectory(prefix='.gguf.', dir=out) as scratch:
    gguf_folder = out / 'gguf' if keep_gguf else pathlib.Path(scratch)
    gguf_folder.mkdir(exist_ok=True)
    runner = Runner(folder, items, gguf_folder, ignore_fields)
    found = {}
    for i, scheme in enumerate(schemes):
      found[scheme] = runner(scheme)
      yield {
          'model': str(folder), 'model_sha256': runner.model_sha256,
          'questions': len(items.questions),
          'agrees': all(f['agrees'] for f in found.values()),
          'versions': versions, 'environment': described,
          'schemes': dict(found),
          'not_checked_yet': list(schemes[i + 1:])}
