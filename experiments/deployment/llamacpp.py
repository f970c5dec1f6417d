"""A model in llama.cpp: quantized by it, and asked by token ids.

The embedding and the output matrix stay float32 and all other matrices are of
one type (`pure`), as in the simulator; where a row is no multiple of a K type's
block of 256, llama.cpp takes another type (Q4_K -> Q5_0, Q6_K -> Q8_0), which
`stored_types` tells. Caches are float32 and flash attention is off. What is
left between the engines: llama.cpp rounds activations to 8 bits before they
meet quantized weights.
"""

from __future__ import annotations

from collections.abc import Sequence
import ctypes
import functools
import math
import os
import pathlib
from typing import Any

import numpy as np
from scipy import special

from experiments.deployment import items
from mansu_jax.models.io import gguf_io

# Our names -> llama.cpp's `llama_ftype`.
FTYPES = {
    'q4_0': 2, 'q4_1': 3, 'q5_0': 8, 'q8_0': 7, 'q4_k': 14, 'q6_k': 18}
SCHEMES = ('f32', *FTYPES)
_F32 = 0  # A ggml_type.
_NO_FLASH_ATTENTION = 0
_TOKENS, _SEQUENCES = 512, 64  # A batch.


def threads() -> int:
  """As many as this process has cores."""
  return len(os.sched_getaffinity(0)) if hasattr(
      os, 'sched_getaffinity') else os.cpu_count() or 1


@functools.cache
def _library() -> Any:
  """llama.cpp, with its log kept back; its last lines are in `_log`."""
  from llama_cpp import llama_cpp  # pylint: disable=g-import-not-at-top

  @llama_cpp.llama_log_callback
  def keep(level, text, user_data):
    del level, user_data
    _log.append(text.decode(errors='replace'))
    del _log[:-8]

  llama_cpp.llama_log_set(keep, ctypes.c_void_p())
  llama_cpp.llama_backend_init()
  _callbacks.append(keep)  # Freed, it would be called all the same.
  return llama_cpp


_log: list[str] = []
_callbacks: list[Any] = []


def _error(what: str) -> ValueError:
  said = ''.join(_log).strip()
  return ValueError(f'llama.cpp cannot {what}; it says: {said or "nothing"}')


def version() -> str:
  """Of llama-cpp-python, whose llama.cpp is used."""
  import llama_cpp  # pylint: disable=g-import-not-at-top
  return llama_cpp.__version__


def quantize(
    source: pathlib.Path, target: pathlib.Path, scheme: str) -> None:
  """Quantizes a float32 file by llama.cpp.

  Args:
    source: a GGUF file.
    target: the file to write.
    scheme: a key of `FTYPES`.

  Raises:
    ValueError: llama.cpp fails; with what it says.
  """
  lib = _library()
  options = lib.llama_model_quantize_default_params()
  options.nthread = threads()
  options.ftype = FTYPES[scheme]
  options.token_embedding_type = options.output_tensor_type = _F32
  options.pure = True
  if lib.llama_model_quantize(
      os.fsencode(source), os.fsencode(target), ctypes.byref(options)):
    raise _error(f'quantize {source} to {scheme}')


def stored_types(path: pathlib.Path) -> dict[str, int]:
  """How many weights of the layers' matrices are stored as each type."""
  sizes: dict[str, int] = {}
  for tensor in gguf_io.open_file(path).tensors:
    if tensor.name.startswith('blk.') and len(tensor.shape) > 1:
      kind = tensor.kind.name
      sizes[kind] = sizes.get(kind, 0) + math.prod(tensor.shape)
  return sizes


def types_by_inputs(path: pathlib.Path) -> dict[int, str]:
  """Type of the layers' matrices by their number of inputs."""
  return {tensor.shape[-1]: tensor.kind.name
          for tensor in gguf_io.open_file(path).tensors
          if tensor.name.startswith('blk.') and len(tensor.shape) > 1}


class Engine:
  """Scores requests by a GGUF file; close it, or use it in a `with`."""

  def __init__(self, path: pathlib.Path, longest: int):
    """Loads a file.

    Args:
      path: the file.
      longest: tokens of the longest request.

    Raises:
      ValueError: llama.cpp cannot load it.
    """
    self._lib = lib = _library()
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    self._context = None
    self._model = lib.llama_model_load_from_file(os.fsencode(path), options)
    if not self._model:
      raise _error(f'load {path}')
    self._size = max(_TOKENS, longest)
    self._context = lib.llama_init_from_model(self._model, self._options())
    if not self._context:
      self.close()
      raise _error(f'run {path}')
    self._vocab = lib.llama_model_get_vocab(self._model)
    self._batch = lib.llama_batch_init(self._size, 0, 1)

  def _options(self) -> Any:
    options = self._lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = self._size
    options.n_seq_max = _SEQUENCES
    options.n_threads = options.n_threads_batch = threads()
    options.type_k = options.type_v = _F32
    options.flash_attn_type = _NO_FLASH_ATTENTION
    options.kv_unified = True
    options.offload_kqv = False
    return options

  def __enter__(self) -> Engine:
    return self

  def __exit__(self, *unused_error) -> None:
    self.close()

  def close(self) -> None:
    """Frees the model."""
    if self._context:
      self._lib.llama_batch_free(self._batch)
      self._lib.llama_free(self._context)
    if self._model:
      self._lib.llama_model_free(self._model)
    self._context = self._model = None

  def tokenize(self, text: str) -> list[int] | None:
    """llama.cpp's own token ids of a text; None: the file has no vocabulary."""
    if not self._lib.llama_vocab_type(self._vocab):
      return None
    raw = text.encode()
    room = len(raw) + 8
    ids = (ctypes.c_int32 * room)()
    count = self._lib.llama_tokenize(
        self._vocab, raw, len(raw), ids, room, False, True)
    return list(ids[:count])

  def __call__(self, requests: Sequence[items.Request]) -> list[np.ndarray]:
    """See `items.Engine`."""
    out: list[Any] = [None] * len(requests)
    for batch in items.batches(requests, self._size, _SEQUENCES):
      asked = [requests[i] for i in batch]
      for i, scores in zip(batch, self._score(asked)):
        out[i] = scores
    return out

  def _score(self, requests: Sequence[items.Request]) -> list[np.ndarray]:
    lib = self._lib
    rows = self._fill(requests)
    lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
    status = lib.llama_decode(self._context, self._batch)
    if status:
      raise _error(f'decode a batch (status {status})')
    size = lib.llama_vocab_n_tokens(self._vocab)
    logits = np.ctypeslib.as_array(
        lib.llama_get_logits(self._context), (sum(map(len, rows)), size))
    out, start = [], 0
    for request, positions in zip(requests, rows):
      found = logits[start:start + len(positions)].astype(np.float64)
      found = special.log_softmax(found, axis=-1)  # [positions, V]
      out.append(found[np.searchsorted(positions, request.positions),
                       request.targets])
      start += len(positions)
    return out

  def _fill(self, requests: Sequence[items.Request]) -> list[np.ndarray]:
    """Makes the batch; returns the positions of each request that predict."""
    batch, n = self._batch, 0
    rows = [np.unique(request.positions) for request in requests]
    for sequence, (request, positions) in enumerate(zip(requests, rows)):
      predicts = set(positions.tolist())
      for position, token in enumerate(request.tokens):
        batch.token[n], batch.pos[n] = token, position
        batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
        batch.logits[n] = position in predicts
        n += 1
    batch.n_tokens = n
    return rows
