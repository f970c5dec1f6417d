"""One model, every scheme: what the simulator says and what deployment does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools
import importlib.metadata
import importlib.util
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from experiments.deployment import bnb
from experiments.deployment import compare
from experiments.deployment import items as items_lib
from experiments.deployment import llamacpp
from experiments.deployment import simulator as simulator_lib
from mansu_jax import types
from mansu_jax.data import tokenization
from mansu_jax.eval import accuracy
from mansu_jax.models.io import gguf_io
from mansu_jax.models.io import gguf_writer
from mansu_jax.models.io import loading

_BF16 = '_bf16'
BNB = (*bnb.SCHEMES, *(f'{name}{_BF16}' for name in bnb.SCHEMES))
SCHEMES = (*BNB, *llamacpp.SCHEMES)
DEFAULT = ('nf4', 'fp4', 'f32', 'q4_0', 'q8_0', 'q4_k', 'q6_k')

_BNB_PACKAGES = ('torch', 'bitsandbytes', 'accelerate')
_LLAMA_PACKAGES = ('llama_cpp',)


def check_schemes(schemes: Sequence[str]) -> None:
  """Raises ValueError for schemes that are unknown or cannot be run here."""
  unknown = sorted(set(schemes) - set(SCHEMES))
  if unknown or not schemes:
    raise ValueError(
        f'--schemes has {unknown or "none"}; wanted some of {list(SCHEMES)}.')
  missing = lambda names: [
      n for n in names if importlib.util.find_spec(n) is None]
  lacks = []
  if set(schemes) & set(BNB) and (absent := missing(_BNB_PACKAGES)):
    lacks.append(f"{', '.join(absent)}: pip install -e '.[parity]'")
  if set(schemes) - set(BNB) and missing(_LLAMA_PACKAGES):
    lacks.append("llama-cpp-python: pip install -e '.[llamacpp]' (it compiles"
                 ' llama.cpp for minutes, by cmake and a C++ compiler)')
  if lacks:
    raise ValueError(
        f'Not installed for --schemes={",".join(schemes)}: {"; ".join(lacks)}.'
        ' Install them, or give --schemes without those that need them.')
  if any(s.endswith(_BF16) for s in schemes) and not bnb.has_bf16_kernel():
    raise ValueError(
        'bitsandbytes has no bfloat16 kernel for this CPU; wanted AVX512-BF16.'
        f' Leave out the schemes that end in {_BF16}.')


class Check:
  """Runs schemes of one model on the same items."""

  def __init__(
      self, folder: pathlib.Path, items: items_lib.Items,
      gguf_folder: pathlib.Path):
    """Loads the model and encodes the items.

    Args:
      folder: a Hugging Face directory.
      items: what is asked.
      gguf_folder: where GGUF files go.

    Raises:
      ValueError: no model is there, or none with a tokenizer.
    """
    self._folder, self._items, self._gguf_folder = folder, items, gguf_folder
    model = loading.load(str(folder))
    if model.tokenizer is None:
      raise ValueError(
          f'{folder} holds no tokenizer; wanted a tokenizer.json. Export the'
          ' model with its tokenizer.')
    self._simulator = simulator_lib.Simulator(
        model, items.questions, chat=items.chat)
    self._plan = items_lib.Plan(
        items.questions, model.tokenizer, chat=items.chat)
    self._words: str | None = None  # Of the tokenizer, in GGUF files.

  def __call__(self, scheme: str) -> dict[str, Any]:
    """Checks one scheme; JSON-able. See `compare.side_by_side`."""
    start = time.monotonic()
    run = self._bitsandbytes if scheme in BNB else self._llamacpp
    found = run(scheme)
    # With float32 products the same weights must give the same answers; f32
    # is GGUF without a quantizer, and shows that the conversion is right.
    exact = scheme in (*bnb.SCHEMES, 'f32')
    judged = found.get('rounded_activations') or found
    alike = found['same_answers'] if exact else judged['zero_inside']
    weights = found['weights']
    agrees = alike and weights is not None and not weights['differing']
    return found | {'exact': exact, 'agrees': agrees,
                    'seconds': round(time.monotonic() - start, 1)}

  def _simulated(
      self, precision: str, quantized: types.Params | None,
      here: accuracy.Scores | None = None
  ) -> tuple[str, items_lib.Answers]:
    """The simulator's answers, as the run recorded them or given now.

    Args:
      precision: what they are recorded as.
      quantized: the simulator's weights; None: it does not know the scheme.
      here: the scores of weights that are the same or take their place.
    """
    if precision in self._items.recorded:
      return 'answers.jsonl', self._items.recorded[precision]
    source = 'simulator' if quantized is not None else 'the file, dequantised'
    scores = self._simulator(quantized) if here is None else here
    return source, items_lib.of_scores(scores)

  def _bitsandbytes(self, name: str) -> dict[str, Any]:
    scheme = name.removesuffix(_BF16)
    model = bnb.load(self._folder, scheme, bf16=name != scheme)
    quantized = self._simulator.quantized(scheme)
    config = self._simulator.model.config
    weights = simulator_lib.weights_differing(
        bnb.params(model, config), quantized, config)
    source, simulated = self._simulated(scheme, quantized)
    real = self._plan.score(bnb.Engine(model))
    return compare.side_by_side(self._items, simulated, real) | {
        'simulated_by': source, 'weights': weights,
        'misread_matrices': len(bnb.misread(model))}

  def _llamacpp(self, scheme: str) -> dict[str, Any]:
    path = self._file(scheme)
    config = self._simulator.model.config
    stored = gguf_io.read_params(gguf_io.open_file(path), config, np.float32)
    quantized, note = self._try_quantized(scheme)
    weights = None if quantized is None else (
        simulator_lib.weights_differing(stored, quantized, config))
    here = self._simulator(stored)  # The file's own weights, our decoder.
    source, simulated = self._simulated(
        'fp' if scheme == 'f32' else scheme, quantized,
        here if weights is None or not weights['differing'] else None)
    rounded = None if scheme == 'f32' else items_lib.of_scores(
        self._simulator.with_rounded_activations(
            stored, llamacpp.types_by_inputs(path)))
    del stored, quantized
    longest = max(len(r.tokens) for r in self._plan.requests)
    with llamacpp.Engine(path, longest) as engine:
      unlike = self._tokenized_differently(engine)
      real = self._plan.score(engine)
    beside = functools.partial(compare.side_by_side, self._items)
    short = lambda found: found | {'differing': len(found['differing'])}
    return beside(simulated, real) | {
        'simulated_by': source, 'note': note, 'weights': weights,
        'stored_types': llamacpp.stored_types(path),
        'word_rule': self._words, 'prompts_tokenized_differently': unlike,
        'same_weights': short(beside(items_lib.of_scores(here), real)),
        'rounded_activations': rounded and short(beside(rounded, real))}

  def _try_quantized(self, scheme: str) -> tuple[types.Params | None, str]:
    """The simulator's weights, or why there are none."""
    if scheme == 'f32':
      return self._simulator.model.params, ''
    try:
      return self._simulator.quantized(scheme), ''
    except ValueError as error:
      return None, f'not simulated: {error}'

  def _file(self, scheme: str) -> pathlib.Path:
    """The GGUF file of a scheme, made where it is not there."""
    plain = self._gguf_folder / 'f32.gguf'
    if self._words is None or not plain.exists():
      model = self._simulator.model
      self._words = gguf_writer.write(
          plain, model.config, model.params, model.tokenizer) or ''
    if scheme == 'f32':
      return plain
    path = self._gguf_folder / f'{scheme}.gguf'
    llamacpp.quantize(plain, path, scheme)
    return path

  def _tokenized_differently(self, engine: llamacpp.Engine) -> int | None:
    """Prompts that llama.cpp cuts otherwise; None: it has no vocabulary."""
    if not self._words:
      return None
    tokenizer = self._simulator.model.tokenizer
    prompts = [tokenization.prompt_text(
        q.prompt, tokenizer, chat=self._items.chat)
               for q in self._items.questions]
    ours = tokenization.encode(prompts, tokenizer)
    return sum(engine.tokenize(p) != ids for p, ids in zip(prompts, ours))


def versions(schemes: Sequence[str]) -> dict[str, str]:
  """Of the packages that the result depends on."""
  names = ['jax', 'gguf']
  if set(schemes) & set(BNB):
    names += ['torch', 'transformers', 'bitsandbytes']
  if set(schemes) - set(BNB):
    names += ['llama-cpp-python']
  return {name: importlib.metadata.version(name) for name in names}


def run(
    folder: pathlib.Path, items: items_lib.Items, schemes: Sequence[str],
    out: pathlib.Path, keep_gguf: bool) -> Iterator[dict[str, Any]]:
  """Checks one scheme after another.

  Args:
    folder: a Hugging Face directory.
    items: what is asked.
    schemes: some of `SCHEMES`.
    out: an existing folder; GGUF files go in it.
    keep_gguf: leave them in `out/gguf`, not delete them.

  Yields:
    What `deployment.json` holds, after each scheme.

  Raises:
    ValueError: as `check_schemes` and the engines do.
  """
  check_schemes(schemes)
  with tempfile.TemporaryDirectory(prefix='.gguf.', dir=out) as scratch:
    gguf_folder = out / 'gguf' if keep_gguf else pathlib.Path(scratch)
    gguf_folder.mkdir(exist_ok=True)
    check = Check(folder, items, gguf_folder)
    found = {}
    for i, scheme in enumerate(schemes):
      found[scheme] = check(scheme)
      yield {
          'model': str(folder), 'questions': len(items.questions),
          'agrees': all(f['agrees'] for f in found.values()),
          'versions': versions(schemes), 'schemes': dict(found),
          'not_checked_yet': list(schemes[i + 1:])}
