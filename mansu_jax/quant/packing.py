"""The storage format of bitsandbytes: two codes a byte, and the scales."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mansu_jax.quant import blockwise
from mansu_jax.quant import codebook_scheme
from mansu_jax.quant import leaves
from mansu_jax.quant import nested
from mansu_jax.quant import scheme as scheme_lib
from mansu_jax.quant import schemes

_LEAST_SCALE = 1e-38  # bitsandbytes stores it for a partial block of zeros.


class PackedWeight(NamedTuple):
  """A matrix [out, in] as in bitsandbytes' `Params4bit`.

  Scales are stored either in `absmax` or, after double quantization, in
  `nested`; the other is None.
  """

  packed: jax.Array  # uint8 [ceil(out * in / 2)]
  absmax: jax.Array | None  # float32 [ceil(out * in / block)]
  nested: nested.NestedScales | None


def pack(
    rows: jax.Array, scheme: str | scheme_lib.Scheme) -> PackedWeight:
  """Quantizes a matrix to the bits that bitsandbytes stores.

  Example:
    >>> import jax.numpy as jnp
    >>> from mansu_jax import quant
    >>> weight = quant.packing.pack(jnp.array([[1.0, 0.3, -0.5, 0.0]]), 'nf4')
    >>> print(weight.packed, weight.absmax)
    [251  39] [1.]
    >>> print(quant.packing.unpack(weight, 'nf4', (1, 4)))
    [[ 1.          0.33791524 -0.52507305  0.        ]]

  Args:
    rows: [out, in], floating-point, in torch order; use `jax.vmap` for stacks.
    scheme: NF4 or FP4 or its name, with any block size, with or without double
      quantization.

  Raises:
    ValueError: another scheme, an array that is not a matrix, or (outside jit)
      NaN or infinity.
  """
  scheme = _codebook(scheme)
  if jnp.ndim(rows) != 2:
    raise ValueError(
        f'The weights have shape {jnp.shape(rows)}; wanted a matrix [out, in].'
        ' Use jax.vmap for stacks.')
  leaves.check_floating(rows, 'rows', 'Packing')
  if leaves.is_concrete(rows):
    leaves.check_finite(rows, 'rows', 'Weights')
  return _pack(rows, scheme)


def _codebook(
    scheme: str | scheme_lib.Scheme) -> codebook_scheme.CodebookScheme:
  found = schemes.get(scheme)
  if not isinstance(found, codebook_scheme.CodebookScheme):
    raise ValueError(
        f'{found.name} is not a 4-bit code book of bitsandbytes; wanted nf4 or'
        ' fp4 or a variant such as nf4_b128_dq.')
  return found


@functools.partial(jax.jit, static_argnames='scheme')
def _pack(rows, scheme):
  blocks = scheme.split(rows.astype(jnp.float32))
  shared = scheme.fit(blocks, rows.shape)
  code = scheme.join(scheme.encode_at(blocks, shared), rows.shape).ravel()
  absmax, nested_scales = shared.scale[:, 0, 0], None
  if scheme.double_quant:
    absmax, nested_scales = None, nested.quantize(absmax)
  elif shared.tail is not None:
    # Compares bits, since XLA treats subnormals as zeros.
    empty = shared.tail[:, 0, 0] & (blockwise.magnitude_bits(absmax) == 0)
    absmax = jnp.where(empty, _LEAST_SCALE, absmax)
  zero = scheme.encode_at(
      jnp.zeros([1], jnp.float32),
      scheme_lib.Shared(jnp.ones([1], jnp.float32)))
  return PackedWeight(_pack_nibbles(code, zero), absmax, nested_scales)


def unpack(
    weight: PackedWeight, scheme: str | scheme_lib.Scheme,
    shape: tuple[int, int]) -> jax.Array:
  """Decodes a packed matrix to float32.

  Args:
    weight: from `pack`.
    scheme: the scheme that packed it, or its name.
    shape: [out, in].

  Raises:
    ValueError: a scheme that `pack` does not support.
  """
  return _unpack(weight, _codebook(scheme), tuple(shape))


@functools.partial(jax.jit, static_argnames=('scheme', 'shape'))
def _unpack(weight, scheme, shape):
  code = _unpack_nibbles(weight.packed, shape[0] * shape[1]).reshape(shape)
  absmax = (weight.absmax if weight.nested is None
            else nested.dequantize(weight.nested))
  values = scheme.decode(
      scheme.split(code), scheme_lib.Shared(absmax[:, None, None]))
  return scheme.join(values, shape)


def _pack_nibbles(code: jax.Array, padding: jax.Array) -> jax.Array:
  """Bytes [ceil(n / 2)] of 4-bit codes [n], the first in the high nibble."""
  if code.shape[0] % 2:
    code = jnp.concatenate([code, padding])
  pairs = code.reshape(-1, 2)
  return pairs[:, 0] << 4 | pairs[:, 1]


def _unpack_nibbles(packed: jax.Array, n: int) -> jax.Array:
  """Inverse of `_pack_nibbles`: codes [n]."""
  return jnp.stack([packed >> 4, packed & 15], -1).ravel()[:n]
