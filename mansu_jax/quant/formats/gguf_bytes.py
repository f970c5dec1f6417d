"""The bytes of each block in a `.gguf` file, computed on the host."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mansu_jax.quant import devices
from mansu_jax.quant import leaves
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes
from mansu_jax.quant.formats import gguf_schemes
from mansu_jax.quant.formats import k_quants


def to_bytes(
    rows: jax.Array, scheme: str | scheme_lib.Scheme) -> np.ndarray:
  """Quantizes a matrix to the bytes that llama.cpp reads.

  Collective: in a run of several processes, every process must call it.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> rows = jnp.linspace(-1.0, 1.0, 64).reshape(2, 32)
    >>> quant.gguf_bytes.to_bytes(rows, 'q8_0').shape
    (2, 34)

  Args:
    rows: [out, in], floating-point, in torch order.
    scheme: a GGUF scheme or its name. For rows that it cannot cut into blocks,
      the fallback of llama.cpp is used.

  Returns:
    uint8 [out, bytes per row], as from `gguf.quantize`.

  Raises:
    ValueError: a scheme that is not a GGUF format, rows that it cannot cut, or
      NaN or infinity.
  """
  scheme = schemes.get(scheme)
  leaves.check_floating(rows, 'rows', 'Quantization')
  leaves.check_finite(jnp.asarray(rows), 'rows', 'Weights')
  if not isinstance(scheme, (gguf_schemes.GgufScheme, k_quants.KScheme)):
    raise ValueError(f'{scheme.name} is not a GGUF format; wanted q4_0,'
                     ' q4_1, q5_0, q8_0, q4_k or q6_k.')
  scheme = scheme.for_columns(rows.shape[-1])
  blocks = scheme.split(jnp.asarray(rows, jnp.float32))
  code, shared, stored = devices.to_host(_encode(blocks, scheme))
  return _BYTES[scheme.name](code, shared, stored).reshape(rows.shape[0], -1)


@functools.partial(jax.jit, static_argnums=1)
def _encode(blocks, scheme):
  """Codes, block parameters and, for a K format, the stored scales."""
  shared = scheme.fit(blocks, blocks.shape)
  is_k = isinstance(scheme, k_quants.KScheme)
  flat = lambda x: x[..., 0]
  return (flat(scheme.encode_at(blocks, shared)), jax.tree.map(flat, shared),
          scheme.search(blocks) if is_k else None)


def _half(x: np.ndarray) -> np.ndarray:
  """float16 [...] as bytes [..., 2]."""
  return np.ascontiguousarray(x, np.float16)[..., None].view(np.uint8)


def _q4_0(code, shared, _):
  return np.concatenate([_half(shared.stored[..., 0]), _halves(code)], -1)


def _q4_1(code, shared, _):
  return np.concatenate([
      _half(shared.stored[..., 0]), _half(shared.stored_offset[..., 0]),
      _halves(code)], -1)


def _q5_0(code, shared, _):
  fifth = np.packbits(code >> 4, axis=-1, bitorder='little')
  return np.concatenate([
      _half(shared.stored[..., 0]), fifth, _halves(code & 15)], -1)


def _q8_0(code, shared, _):
  integer = (code.astype(np.int16) - 128).astype(np.int8).view(np.uint8)
  return np.concatenate([_half(shared.stored[..., 0]), integer], -1)


def _q4_k(code, _, stored):
  scales, offsets = (
      x.astype(np.uint8) for x in (stored.scales, stored.offsets))
  by_super = code.reshape(*scales.shape[:-1], 4, 64)
  return np.concatenate([
      _half(stored.scale), _half(stored.offset), _six_bits(scales, offsets),
      _flat(_halves(by_super))], -1)


def _six_bits(scales: np.ndarray, offsets: np.ndarray) -> np.ndarray:
  """Eight 6-bit scales and offsets [..., 8] in 12 bytes."""
  low = lambda x: x[..., :4] | (x[..., 4:] >> 4) << 6
  rest = scales[..., 4:] & 15 | (offsets[..., 4:] & 15) << 4
  return np.concatenate([low(scales), low(offsets), rest], -1)


def _q6_k(code, _, stored):
  code = code.reshape(*stored.scale.shape, 2, 4, 32)
  four = code & 15
  low = np.concatenate([four[..., 0, :] | four[..., 2, :] << 4,
                        four[..., 1, :] | four[..., 3, :] << 4], -1)
  two = code >> 4
  high = (two[..., 0, :] | two[..., 1, :] << 2 | two[..., 2, :] << 4
          | two[..., 3, :] << 6)
  scales = stored.scales.astype(np.int8).view(np.uint8)
  return np.concatenate(
      [_flat(low), _flat(high), scales, _half(stored.scale)], -1)


def _halves(code: np.ndarray) -> np.ndarray:
  """n bytes of 4-bit codes [..., 2 n], the first n in the low nibbles."""
  first, second = np.split(code, 2, -1)
  return first | second << 4


def _flat(x: np.ndarray) -> np.ndarray:
  """[..., a, b] to [..., a * b]."""
  return x.reshape(*x.shape[:-2], -1)


_BYTES = {
    'q4_0': _q4_0, 'q4_1': _q4_1, 'q5_0': _q5_0, 'q8_0': _q8_0, 'q4_k': _q4_k,
    'q6_k': _q6_k}
