"""A model in llama.cpp: quantized by it, and scored from token ids.

Embedding and output matrix stay float32, and all other matrices get one type
(`pure`), as in the simulator. For rows whose length is not a multiple of the
256-block of a K type, llama.cpp substitutes another type (Q5_0 for Q4_K, Q8_0
for Q6_K); `stored_types` counts the types of a file. Caches are float32 and
flash attention is off. One difference from the simulator remains: llama.cpp
rounds activations to 8 bits before it multiplies them by quantized weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import ctypes
import functools
import math
import os
import pathlib
from typing import Any

import numpy as np
from scipy import special

from mansu_jax.deployment import extras
from mansu_jax.deployment import schemes
from mansu_jax.deployment import scoring_plan
from mansu_jax.models.io import gguf_io

_F32 = 0  # `ggml_type`.
_NO_FLASH_ATTENTION = 0
_MIN_TOKENS, _MAX_REQUESTS = 512, 64  # Per batch.
_LOG_LINES = 8  # Lines of llama.cpp's log that errors quote.


def num_threads() -> int:
  """Number of cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(
      os, 'sched_getaffinity') else os.cpu_count() or 1


@functools.cache
def _library() -> Any:
  """Bindings of llama.cpp, whose log goes to `_log` instead of stderr."""
  extras.require(['llamacpp'])
  from llama_cpp import llama_cpp  # pylint: disable=g-import-not-at-top

  @llama_cpp.llama_log_callback
  def append_to_log(level, text, user_data):
    del level, user_data
    _log.append(text.decode(errors='replace'))
    del _log[:-_LOG_LINES]

  llama_cpp.llama_log_set(append_to_log, ctypes.c_void_p())
  llama_cpp.llama_backend_init()
  # llama.cpp calls it until the process ends, so it must not be freed.
  _callbacks.append(append_to_log)
  return llama_cpp


_log: list[str] = []
_callbacks: list[Any] = []


def _error(action: str) -> ValueError:
  message = ''.join(_log).strip()
  return ValueError(
      f'llama.cpp cannot {action}; its log says: {message or "nothing"}')


def quantize(
    source: pathlib.Path, target: pathlib.Path, scheme: str) -> None:
  """Quantizes a float32 GGUF file by llama.cpp.

  Args:
    source: GGUF file.
    target: File to write.
    scheme: Key of `schemes.FTYPES`.

  Raises:
    ValueError: llama.cpp is not installed or fails; the message quotes its log.
  """
  lib = _library()
  options = lib.llama_model_quantize_default_params()
  options.nthread = num_threads()
  options.ftype = schemes.FTYPES[scheme]
  options.token_embedding_type = options.output_tensor_type = _F32
  options.pure = True
  if lib.llama_model_quantize(
      os.fsencode(source), os.fsencode(target), ctypes.byref(options)):
    raise _error(f'quantize {source} to {scheme}')


def stored_types(path: pathlib.Path) -> dict[str, int]:
  """Number of layer weights of a GGUF file by ggml type."""
  sizes: dict[str, int] = {}
  for tensor in _layer_matrices(path):
    kind = tensor.kind.name
    sizes[kind] = sizes.get(kind, 0) + math.prod(tensor.shape)
  return sizes


def types_by_input_size(path: pathlib.Path) -> dict[int, str]:
  """ggml type of a GGUF file's layer matrices by their number of inputs."""
  return {tensor.shape[-1]: tensor.kind.name
          for tensor in _layer_matrices(path)}


def _layer_matrices(path: pathlib.Path) -> Iterator[Any]:
  for tensor in gguf_io.open_file(path).tensors:
    if tensor.name.startswith('blk.') and len(tensor.shape) > 1:
      yield tensor


class Engine:
  """Scores requests by a GGUF file. Close it, or use it in a `with`."""

  def __init__(self, path: pathlib.Path, longest: int):
    """Loads a file.

    Args:
      path: GGUF file.
      longest: Tokens of the longest request.

    Raises:
      ValueError: llama.cpp is not installed or cannot load the file.
    """
    self._lib = lib = _library()
    options = lib.llama_model_default_params()
    options.n_gpu_layers = 0
    self._context = None
    self._model = lib.llama_model_load_from_file(os.fsencode(path), options)
    if not self._model:
      raise _error(f'load {path}')
    self._size = max(_MIN_TOKENS, longest)
    self._context = lib.llama_init_from_model(self._model, self._options())
    if not self._context:
      self.close()
      raise _error(f'run {path}')
    self._vocab = lib.llama_model_get_vocab(self._model)
    self._batch = lib.llama_batch_init(self._size, 0, 1)

  def _options(self) -> Any:
    options = self._lib.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = self._size
    options.n_seq_max = _MAX_REQUESTS
    options.n_threads = options.n_threads_batch = num_threads()
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
    """Tokenizes by llama.cpp; None if the file has no vocabulary."""
    if not self._lib.llama_vocab_type(self._vocab):
      return None
    raw = text.encode()
    room = len(raw) + 8
    ids = (ctypes.c_int32 * room)()
    count = self._lib.llama_tokenize(
        self._vocab, raw, len(raw), ids, room, False, True)
    return list(ids[:count])

  def __call__(
      self, requests: Sequence[scoring_plan.Request]) -> list[np.ndarray]:
    """Scores requests; see `scoring_plan.Engine`."""
    return scoring_plan.score_in_batches(
        requests, self._score, max_tokens=self._size,
        max_requests=_MAX_REQUESTS)

  def _score(
      self, requests: Sequence[scoring_plan.Request]) -> list[np.ndarray]:
    """Scores one batch."""
    rows = [np.unique(request.positions) for request in requests]
    logits = self._decode(requests, rows)
    out, start = [], 0
    for request, positions in zip(requests, rows):
      found = logits[start:start + len(positions)].astype(np.float64)
      found = special.log_softmax(found, axis=-1)  # [positions, V]
      out.append(found[np.searchsorted(positions, request.positions),
                       request.targets])
      start += len(positions)
    return out

  def _decode(
      self, requests: Sequence[scoring_plan.Request],
      rows: Sequence[np.ndarray]) -> np.ndarray:
    """Runs a batch; returns the logits at the positions of `rows`, in order."""
    lib = self._lib
    self._fill_batch(requests, rows)
    lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
    status = lib.llama_decode(self._context, self._batch)
    if status:
      raise _error(f'decode a batch (status {status})')
    size = lib.llama_vocab_n_tokens(self._vocab)
    return np.ctypeslib.as_array(
        lib.llama_get_logits(self._context), (sum(map(len, rows)), size))

  def _fill_batch(
      self, requests: Sequence[scoring_plan.Request],
      rows: Sequence[np.ndarray]) -> None:
    """Writes tokens to the batch and asks for the logits at `rows`."""
    batch, n = self._batch, 0
    for sequence, (request, positions) in enumerate(zip(requests, rows)):
      scored = set(positions.tolist())
      for position, token in enumerate(request.tokens):
        batch.token[n], batch.pos[n] = token, position
        batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
        batch.logits[n] = position in scored
        n += 1
    batch.n_tokens = n
