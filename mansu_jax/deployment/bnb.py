"""A model in 4-bit bitsandbytes on CPU: its weights and its answers.

Two properties of bitsandbytes 0.50.2 matter here:

* On CPUs with AVX512-BF16, a model in eval mode multiplies in bfloat16,
  whatever its compute dtype, by a kernel that stores weights in another order.
  `load` disables this kernel unless the caller asks for it, so that products
  are in float32.
* With AVX-512, the dequantizer returns wrong values for a matrix whose row
  length is not a multiple of the block size. It returns right values for the
  same weights flattened. `load` finds such matrices and replaces them by dense
  ones with the right values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import copy
import logging
import pathlib
from typing import Any

import numpy as np

from mansu_jax import types
from mansu_jax.deployment import extras
from mansu_jax.deployment import scoring_plan
from mansu_jax.models import assemble
from mansu_jax.models import config as config_lib
from mansu_jax.models import families
from mansu_jax.models import layout

_DOUBLE_QUANT = '_dq'  # Suffix of schemes with doubly quantized scales.
_MAX_TOKENS, _MAX_REQUESTS = 2048, 256  # Per forward pass.


def load(folder: pathlib.Path, scheme: str, *, bf16: bool = False) -> Any:
  """Loads a transformers model in 4 bits, in blocks of 64.

  Args:
    folder: Hugging Face directory.
    scheme: One of `schemes.FLOAT32_PRODUCTS`.
    bf16: Whether bitsandbytes may use its bfloat16 kernel if the CPU has one.

  Returns:
    A transformers model in eval mode.

  Raises:
    ValueError: A package of the extra `parity` is missing.
  """
  extras.require(['parity'])
  import torch  # pylint: disable=g-import-not-at-top
  # Silences the advice to download a faster kernel from a hub.
  logging.getLogger('bitsandbytes.backends.cpu.ops').setLevel(logging.ERROR)
  import transformers  # pylint: disable=g-import-not-at-top

  model = transformers.AutoModelForCausalLM.from_pretrained(
      str(folder), local_files_only=True, dtype=torch.float32,
      device_map={'': 'cpu'},
      quantization_config=transformers.BitsAndBytesConfig(
          load_in_4bit=True,
          bnb_4bit_quant_type=scheme.removesuffix(_DOUBLE_QUANT),
          bnb_4bit_use_double_quant=scheme.endswith(_DOUBLE_QUANT),
          bnb_4bit_compute_dtype=torch.float32))
  model.eval()
  if not bf16:
    _multiply_in_float32(model)
  return model


def _multiply_in_float32(model: Any) -> None:
  """Disables the bfloat16 kernel and replaces misread matrices."""
  for name, module in _quantized_modules(model):
    module.support_avx512bf16_for_cpu = False
    if _is_misread(module):
      _replace_by_dense(model, name, module)


def has_bf16_kernel() -> bool:
  """Whether bitsandbytes has a bfloat16 kernel for this CPU."""
  from bitsandbytes import functional  # pylint: disable=g-import-not-at-top
  return bool(getattr(functional, 'has_avx512bf16', lambda: False)())


def _quantized_modules(model: Any) -> Iterator[tuple[str, Any]]:
  """Names and modules of the quantized matrices."""
  import bitsandbytes  # pylint: disable=g-import-not-at-top
  for name, module in list(model.named_modules()):
    if isinstance(module, bitsandbytes.nn.Linear4bit):
      yield name, module


def _decode(module: Any, *, flat: bool) -> Any:
  """Decodes a quantized matrix by bitsandbytes; returns values [out, in]."""
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


def _replace_by_dense(model: Any, name: str, module: Any) -> None:
  """Replaces a module by a dense one with correctly decoded values."""
  import torch  # pylint: disable=g-import-not-at-top
  values = _decode(module, flat=True)
  dense = torch.nn.Linear(*reversed(values.shape), bias=False, device='meta')
  dense.weight = torch.nn.Parameter(values, requires_grad=False)
  dense.bias = module.bias
  dense.misread = True
  model.set_submodule(name, dense)


def misread_matrices(model: Any) -> list[str]:
  """Names of the matrices that bitsandbytes alone would decode wrongly."""
  return [name for name, module in model.named_modules()
          if getattr(module, 'misread', False)]


def read_params(model: Any, config: config_lib.ModelConfig) -> types.Params:
  """Weights that a loaded model computes with, in the decoder's layout.

  Args:
    model: Model from `load`.
    config: The model's config.

  Returns:
    float32 params on the host; see `decoder.py`.

  Raises:
    ValueError: transformers quantizes other matrices than the simulator.
  """
  quantized = dict(_quantized_modules(model))
  _check_quantized({*quantized, *misread_matrices(model)}, config)
  named = dict(model.named_parameters())
  misread = misread_matrices(model)

  def read(tensor: assemble.Tensor) -> np.ndarray:
    module = quantized.get(tensor.name.removesuffix('.weight'))
    if tensor.leaves == ('lm_head',):  # Some files name it otherwise.
      values = model.get_output_embeddings().weight.detach()
    elif module is None:
      values = named[tensor.name].detach()
    else:
      values = _decode(module, flat=True)
    own = tensor.name.removesuffix('.weight')
    if tensor.transposed and (module is not None or own in misread):
      values = values.T  # transformers transposes what it quantizes.
    return values.float().numpy()

  return assemble.assemble(config, families.naming(config), read, np.float32)


def _check_quantized(
    modules: set[str], config: config_lib.ModelConfig) -> None:
  """Checks that exactly the simulator's matrices are quantized."""
  quantized = {f'{name}.weight' for name in modules}
  wanted = {t.name for t in assemble.tensors(config, families.naming(config))
            if t.leaves[0] in layout.MATRICES}
  if quantized != wanted:
    raise ValueError(
        'transformers with bitsandbytes quantizes other matrices than the'
        f' simulator: {sorted(quantized ^ wanted)[:4]}; wanted all matrices of'
        ' the layers and no others. Use another release of transformers.')


class Engine:
  """Scores requests by a transformers model."""

  def __init__(self, model: Any):
    """Takes a model from `load`."""
    self._model = model

  def __call__(
      self, requests: Sequence[scoring_plan.Request]) -> list[np.ndarray]:
    """Scores requests; see `scoring_plan.Engine`."""
    return scoring_plan.score_in_batches(
        requests, self._score, max_tokens=_MAX_TOKENS,
        max_requests=_MAX_REQUESTS)

  def _score(
      self, requests: Sequence[scoring_plan.Request]) -> list[np.ndarray]:
    """Scores one batch."""
    import torch  # pylint: disable=g-import-not-at-top
    # Attention is causal, so padding on the right changes no score.
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
      cap = getattr(self._model.config, 'final_logit_softcapping', None)
      if cap:  # The whole model computes it after these (Gemma 2).
        logits = torch.tanh(logits / cap) * cap
      found = torch.log_softmax(logits.double(), -1)
      found = found.gather(1, targets[:, None])[:, 0].numpy()
    return np.split(found, np.cumsum(counts)[:-1])
