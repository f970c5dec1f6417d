"""A model in bitsandbytes' 4 bits on CPU: its weights, and its answers.

Two things of bitsandbytes 0.50.2 to know:

* On CPUs with AVX512-BF16 a model in eval mode multiplies in bfloat16, whatever
  its compute dtype, by a kernel with weights of another layout. `load` turns
  that off unless it is asked for, so that products are of float32.
* With AVX-512 the dequantizer gives wrong values for a matrix whose rows are
  no multiple of the block, and right ones for the same weights flattened.
  `load` finds such matrices and multiplies by the right values there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import copy
import logging
import pathlib
from typing import Any

import numpy as np

from experiments.deployment import items
from mansu_jax import types
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models import layout
from mansu_jax.models.families import llama

_DOUBLE = '_dq'  # Doubly quantized scales.
SCHEMES = ('nf4', 'fp4', 'nf4_dq', 'fp4_dq')
_TOKENS, _SEQUENCES = 2048, 256  # A forward pass.


def load(folder: pathlib.Path, scheme: str, *, bf16: bool = False) -> Any:
  """A transformers model whose matrices are `scheme` of blocks of 64.

  Args:
    folder: a Hugging Face directory.
    scheme: one of `SCHEMES`.
    bf16: leave bitsandbytes its bfloat16 kernel, where the CPU has it.

  Raises:
    ValueError: other matrices are quantized than the simulator quantizes.
  """
  import torch  # pylint: disable=g-import-not-at-top
  # Says on such CPUs that a faster kernel of a hub is not installed.
  logging.getLogger('bitsandbytes.backends.cpu.ops').setLevel(logging.ERROR)
  import transformers  # pylint: disable=g-import-not-at-top

  model = transformers.AutoModelForCausalLM.from_pretrained(
      str(folder), local_files_only=True, dtype=torch.float32,
      device_map={'': 'cpu'},
      quantization_config=transformers.BitsAndBytesConfig(
          load_in_4bit=True,
          bnb_4bit_quant_type=scheme.removesuffix(_DOUBLE),
          bnb_4bit_use_double_quant=scheme.endswith(_DOUBLE),
          bnb_4bit_compute_dtype=torch.float32))
  model.eval()
  for name, module in _quantized(model):
    if not bf16:
      module.support_avx512bf16_for_cpu = False
      if _is_misread(module):
        _replace(model, name, module)
  return model


def has_bf16_kernel() -> bool:
  """Whether bitsandbytes multiplies in bfloat16 on this CPU."""
  from bitsandbytes import functional  # pylint: disable=g-import-not-at-top
  return bool(getattr(functional, 'has_avx512bf16', lambda: False)())


def _quantized(model: Any) -> Iterator[tuple[str, Any]]:
  """Names and modules of the quantized matrices."""
  import bitsandbytes  # pylint: disable=g-import-not-at-top
  for name, module in list(model.named_modules()):
    if isinstance(module, bitsandbytes.nn.Linear4bit):
      yield name, module


def _decode(module: Any, *, flat: bool) -> Any:
  """bitsandbytes' values [out, in] of a quantized matrix."""
  from bitsandbytes import functional  # pylint: disable=g-import-not-at-top
  state = module.weight.quant_state
  shape = state.shape
  if flat:
    state = copy.copy(state)
    state.shape = type(shape)([shape.numel()])
  return functional.dequantize_4bit(module.weight.data, state).reshape(shape)


def _is_misread(module: Any) -> bool:
  return not bool(
      (_decode(module, flat=True) == _decode(module, flat=False)).all())


def _replace(model: Any, name: str, module: Any) -> None:
  """Puts a plain matrix of the right values in the module's place."""
  import torch  # pylint: disable=g-import-not-at-top
  values = _decode(module, flat=True)
  plain = torch.nn.Linear(*reversed(values.shape), bias=False, device='meta')
  plain.weight = torch.nn.Parameter(values, requires_grad=False)
  plain.misread = True
  model.set_submodule(name, plain)


def misread(model: Any) -> list[str]:
  """Names of the matrices that bitsandbytes itself would misread."""
  return [name for name, module in model.named_modules()
          if getattr(module, 'misread', False)]


def params(model: Any, config: config_lib.ModelConfig) -> types.Params:
  """The weights that a model of `load` computes with, as the decoder's.

  Raises:
    ValueError: other matrices are quantized than the simulator quantizes.
  """
  found = {f'{name}.weight': module for name, module in _quantized(model)}
  plain = dict(model.named_parameters())
  quantized = {*found, *(f'{name}.weight' for name in misread(model))}
  wanted = {t.name for t in assemble.tensors(config, llama.NAMES)
            if t.leaf in layout.MATRICES}
  if quantized != wanted:
    raise ValueError(
        'transformers with bitsandbytes quantizes other matrices than the'
        f' simulator: {sorted(quantized ^ wanted)[:4]}. Wanted all of the'
        ' layers and nothing else; use another release of transformers.')

  def read(tensor: assemble.Tensor) -> np.ndarray:
    module = found.get(tensor.name)
    values = (plain[tensor.name].detach() if module is None
              else _decode(module, flat=True))
    return values.float().numpy()

  return assemble.assemble(config, llama.NAMES, read, np.float32)


class Engine:
  """Scores requests by a transformers model."""

  def __init__(self, model: Any):
    """Takes a model of `load`."""
    self._model = model

  def __call__(self, requests: Sequence[items.Request]) -> list[np.ndarray]:
    """See `items.Engine`."""
    out: list[Any] = [None] * len(requests)
    for batch in items.batches(requests, _TOKENS, _SEQUENCES):
      asked = [requests[i] for i in batch]
      for i, scores in zip(batch, self._score(asked)):
        out[i] = scores
    return out

  def _score(self, requests: Sequence[items.Request]) -> list[np.ndarray]:
    import torch  # pylint: disable=g-import-not-at-top
    # Nothing before it sees padding on the right: attention is causal.
    tokens = np.zeros(
        (len(requests), max(len(r.tokens) for r in requests)), np.int64)
    for row, request in zip(tokens, requests):
      row[:len(request.tokens)] = request.tokens
    counts = [len(r.positions) for r in requests]
    rows = np.repeat(np.arange(len(requests)), counts)
    positions = np.concatenate([r.positions for r in requests])
    targets = torch.from_numpy(np.concatenate([r.targets for r in requests]))
    with torch.inference_mode():
      hidden = self._model.get_decoder()(
          input_ids=torch.from_numpy(tokens), use_cache=False)[0]
      logits = self._model.get_output_embeddings()(hidden[rows, positions])
      found = torch.log_softmax(logits.double(), -1)
      found = found.gather(1, targets[:, None])[:, 0].numpy()
    return np.split(found, np.cumsum(counts)[:-1])
