"""NF4 and FP4 against the output of bitsandbytes, bit by bit."""

import dataclasses
import functools
import json
import pathlib
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.quant import codebooks
from mansu_jax.quant import nested
from mansu_jax.quant import packing
from mansu_jax.quant import schemes

pytestmark = pytest.mark.slow  # Compiles a program for every size and block.

_GOLDEN = (
    pathlib.Path(__file__).parents[3] / 'shared/golden/nf4_fp4_cases.npz')
_PLAIN = ('float32', 'float16', 'bfloat16')
_BITS = {4: np.int32, 2: np.uint16}


@functools.partial(jax.jit, static_argnums=1)
def _encode_and_snap(rows, scheme):
  """Codes, scales, values in the dtype of the input, and stored bytes."""
  codes = scheme.encode(rows)
  return (
      codes.code, codes.shared.scale,
      scheme.fake_quantize(rows).astype(rows.dtype), packing.pack(rows, scheme))


@functools.cache
def _cases():
  with np.load(_GOLDEN) as file:
    arrays = {name: file[name] for name in file.files}
  return arrays, json.loads(str(arrays['manifest']))


def _bits(x):
  x = np.asarray(x)
  return x.view(_BITS[x.itemsize]).reshape(-1)


def _unpack(packed, n):
  packed = packed.reshape(-1)
  return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:n]


@unittest.skipUnless(
    _GOLDEN.exists(), 'the golden values are not beside this checkout')
class GoldenTest(parameterized.TestCase):

  @parameterized.parameters('nf4', 'fp4')
  def test_tables(self, name):
    arrays, _ = _cases()
    table, order = {
        'nf4': (codebooks.NF4, codebooks.NF4_ORDER),
        'fp4': (codebooks.FP4, codebooks.FP4_ORDER)}[name]
    np.testing.assert_array_equal(table, arrays[f'table_{name}'])
    np.testing.assert_array_equal(
        codebooks.midpoints(table, order), arrays[f'midpoints_{name}'])

  @parameterized.product(name=('nf4', 'fp4'), dtype=_PLAIN)
  def test_every_block_of_every_case(self, name, dtype):
    arrays, manifest = _cases()
    outputs = [
        (case['name'], output['block']) for case in manifest
        for output in case['outputs']
        if output['type'] == name and case['dtype'] == dtype
        and not case['double_quant']]
    self.assertNotEmpty(outputs)
    for case, block in outputs:
      with self.subTest(case=case, block=block):
        self._check(arrays, case, name, block, dtype)

  def _check(self, arrays, case, name, block, dtype):
    x = arrays[f'{case}.in']
    x = x if dtype == 'float32' else x.view(jnp.dtype(dtype))
    scheme = dataclasses.replace(schemes.get(name), block=block)
    code, scale, snapped, packed = _encode_and_snap(
        jnp.asarray(x).reshape(1, -1), scheme)
    key = f'{case}.{name}.{block}'
    np.testing.assert_array_equal(
        packed.packed, arrays[f'{key}.packed'].reshape(-1))
    np.testing.assert_array_equal(
        _bits(packed.absmax), _bits(arrays[f'{key}.absmax']))
    want_code = _unpack(arrays[f'{key}.packed'], x.size)
    np.testing.assert_array_equal(np.ravel(code), want_code)
    # A partial block of zeros stores 1e-38, which decodes to the same zeros.
    want_scale = arrays[f'{key}.absmax'].reshape(-1)
    scale = np.asarray(scale).reshape(-1)[::block].copy()
    scale[(scale == 0) & (want_scale == np.float32(1e-38))] = 1e-38
    np.testing.assert_array_equal(_bits(scale), _bits(want_scale))
    want = self._written_rule(arrays, key, want_code, name, x.size, dtype)
    np.testing.assert_array_equal(_bits(snapped), want)

  @parameterized.parameters('nf4', 'fp4')
  def test_double_quantization(self, name):
    arrays, manifest = _cases()
    cases = [(case, output['block']) for case in manifest
             for output in case['outputs']
             if case['double_quant'] and output['type'] == name]
    self.assertNotEmpty(cases)
    for case, block in cases:
      with self.subTest(case=case['name'], block=block):
        self._check_double(arrays, case, name, block)

  def _check_double(self, arrays, case, name, block):
    x = arrays[f'{case["name"]}.in']
    if case['dtype'] != 'float32':
      x = x.view(jnp.dtype(case['dtype']))
    scheme = schemes.get(f'{name}_b{block}_dq')
    rows = jnp.asarray(x).reshape(1, -1)
    key = f'{case["name"]}.{name}.{block}'
    want = lambda part: arrays[f'{key}.{part}'].reshape(-1)
    _, _, snapped, got = _encode_and_snap(rows, scheme)
    self.assertIsNone(got.absmax)
    np.testing.assert_array_equal(got.packed, want('packed'))
    np.testing.assert_array_equal(got.nested.code, want('absmax_q'))
    np.testing.assert_array_equal(
        _bits(got.nested.offset), _bits(arrays[f'{key}.absmax_offset']))
    np.testing.assert_array_equal(
        _bits(got.nested.absmax), _bits(want('nested_absmax')))
    np.testing.assert_array_equal(
        _bits(nested.dequantize(got.nested)), _bits(want('absmax')))
    np.testing.assert_array_equal(
        _bits(nested.code_book()), _bits(want('nested_code')))
    np.testing.assert_array_equal(_bits(snapped), self._written_rule(
        arrays, key, _unpack(want('packed'), x.size), name, x.size,
        case['dtype']))
    unpacked = packing.unpack(got, scheme, rows.shape)
    np.testing.assert_array_equal(
        _bits(unpacked.astype(rows.dtype)), _bits(snapped))

  def _written_rule(self, arrays, key, code, name, n, dtype):
    """Values of bitsandbytes without the two oddities that the README lists."""
    values = arrays[f'{key}.dequant']
    want = _bits(values).copy()
    if name == 'fp4':  # Code 8 may decode to -0.0.
      is_zero = (code == 8) & ((want & want.dtype.type(_largest(want))) == 0)
      want[is_zero] = 0
    if dtype == 'bfloat16':  # bfloat16 kernels flush subnormals.
      scale = np.repeat(
          arrays[f'{key}.absmax'].reshape(-1), int(key.split('.')[-1]))[:n]
      exact = (arrays[f'table_{name}'][code] * scale).astype(jnp.bfloat16)
      flushed = (want & 0x7FFF == 0) & (exact.view(np.uint16) & 0x7FFF < 0x80)
      want[flushed] = exact.view(np.uint16)[flushed]
    return want


def _largest(bits):
  """All bits of the type except the sign."""
  return 0x7FFFFFFF if bits.itemsize == 4 else 0x7FFF


if __name__ == '__main__':
  absltest.main()
