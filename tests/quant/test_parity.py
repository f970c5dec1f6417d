"""Fresh values against the real quantizers, and their published statistics.

bitsandbytes and llama.cpp (`llama-cpp-python`) where they are installed; the
`gguf` package always is.
"""

import ctypes
import importlib.util
import pathlib
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.quant import nested
from mansu_jax.quant import packing
from mansu_jax.quant import schemes
from mansu_jax.quant.formats import gguf_bytes

_installed = lambda name: importlib.util.find_spec(name) is not None
_QUANT_TYPES = gguf.GGMLQuantizationType
_VALUES = 20_000_000
# Mean |x - Q(x)| and mean |x - Q(x)| / |x| of standard normal x, by block.
# Source: tests/test_functional.py of bitsandbytes, averages of 1,000 samples.
_PUBLISHED = {
    'nf4': {64: (0.072792, 0.203299), 128: (0.076835, 0.215252),
            256: (0.080326, 0.226044), 512: (0.083535, 0.236021),
            1024: (0.086603, 0.245365), 2048: (0.089592, 0.254146),
            4096: (0.092537, 0.262457)},
    'fp4': {64: (0.096545, 0.260130), 128: (0.102947, 0.275734),
            256: (0.108685, 0.289842), 512: (0.114087, 0.302852),
            1024: (0.119312, 0.314982), 2048: (0.124460, 0.326402),
            4096: (0.129573, 0.337228)}}


def _bits(x):
  return np.asarray(x).view(np.int32)


def _weights(shape, seed):
  """Heavy-tailed values; some rows lie on a lattice and have many ties."""
  rng = np.random.default_rng(seed)
  x = rng.standard_t(3, shape) * 0.02 * 10.0 ** rng.uniform(-3, 2, (
      shape[0], 1))
  x[::7] = np.round(x[::7] * 256) / 256 + 0.0  # Never -0.
  return x.astype(np.float32)


class PublishedTest(parameterized.TestCase):

  @parameterized.parameters(*(
      (kind, block) for kind in _PUBLISHED for block in _PUBLISHED[kind]))
  @pytest.mark.medium
  def test_error_of_normal_values(self, kind, block):
    scheme = schemes.get(f'{kind}_b{block}')
    snap = jax.jit(scheme.fake_quantize)
    found = []
    for seed in range(4):
      x = np.random.default_rng(seed).standard_normal((1024, 1024), np.float32)
      error = np.abs(x - np.asarray(snap(x)))
      found.append((error.mean(), (error / (np.abs(x) + 1e-8)).mean()))
    np.testing.assert_allclose(  # The tolerance of bitsandbytes' own test.
        np.mean(found, 0), _PUBLISHED[kind][block], atol=1e-3)


class GgufPackageTest(parameterized.TestCase):

  @parameterized.parameters('q4_0', 'q4_1', 'q5_0', 'q8_0')
  def test_bytes_of_fresh_values(self, name):
    x, kind = _weights((700, 512), 1), _QUANT_TYPES[name.upper()]
    got = gguf_bytes.to_bytes(x, schemes.get(name))
    np.testing.assert_array_equal(got, gguf.quantize(x, kind))
    np.testing.assert_array_equal(
        gguf.dequantize(got, kind), schemes.get(name).fake_quantize(x))

  @parameterized.parameters('q4_k', 'q6_k')
  @pytest.mark.medium
  def test_bytes_decode_to_the_simulated_values(self, name):
    x, kind = _weights((70, 512), 2), _QUANT_TYPES[name.upper()]
    got = gguf_bytes.to_bytes(x, schemes.get(name))
    np.testing.assert_array_equal(
        gguf.dequantize(got, kind), schemes.get(name).fake_quantize(x))

  def test_fallback_and_refusals(self):
    x = _weights((4, 96), 3)
    np.testing.assert_array_equal(
        gguf_bytes.to_bytes(x, schemes.get('q4_k')),
        gguf.quantize(x, _QUANT_TYPES.Q5_0))
    with self.assertRaisesRegex(ValueError, 'nf4 is not a GGUF format'):
      gguf_bytes.to_bytes(x, schemes.get('nf4'))
    with self.assertRaisesRegex(ValueError, 'blocks of 32'):
      gguf_bytes.to_bytes(x[:, :50], schemes.get('q8_0'))


@unittest.skipUnless(_installed('llama_cpp'), 'no llama-cpp-python')
class LlamaCppTest(parameterized.TestCase):
  """Parity with the C code of llama.cpp."""

  def _quantize(self, x, kind):
    folder = pathlib.Path(importlib.util.find_spec('llama_cpp').origin).parent
    library = ctypes.CDLL(str(next((folder / 'lib').glob('libggml-base.*'))))
    chunk = library.ggml_quantize_chunk
    chunk.restype = ctypes.c_size_t
    chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                      *[ctypes.c_int64] * 3, ctypes.c_void_p]
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    out = np.zeros((x.shape[0], x.shape[1] // weights * size), np.uint8)
    chunk(int(kind), x.ctypes.data, out.ctypes.data, 0, *x.shape, None)
    return out

  @parameterized.parameters('q4_0', 'q4_1', 'q5_0', 'q8_0', 'q4_k', 'q6_k')
  def test_parity_of_values(self, name):
    x, kind = _weights((500, 2048), 4), _QUANT_TYPES[name.upper()]
    want = gguf.dequantize(self._quantize(x, kind), kind)
    got = np.asarray(jax.jit(schemes.get(name).fake_quantize)(x))
    self.assertEqual(np.sum(got != want), 0)


@unittest.skipUnless(_installed('bitsandbytes'), 'no bitsandbytes')
class BitsandbytesTest(parameterized.TestCase):
  """Parity on 20 million fresh values: codes, scales, decoded values."""

  def _check(self, name, x):
    from bitsandbytes import functional
    import torch
    torch.set_num_threads(1)  # The mean of many scales depends on the threads.
    scheme = schemes.get(name)
    # Flat, since the CPU kernel counts the scales of 2-D weights by row.
    packed, state = functional.quantize_4bit(
        torch.from_numpy(x.reshape(-1)), blocksize=scheme.block,
        quant_type=name[:3], compress_statistics=scheme.double_quant)
    got = packing.pack(x, scheme)
    np.testing.assert_array_equal(got.packed, packed.numpy().ravel())
    if scheme.double_quant:
      np.testing.assert_array_equal(got.nested.code, state.absmax.numpy())
      np.testing.assert_array_equal(
          _bits(got.nested.absmax), _bits(state.state2.absmax.numpy()))
      self.assertEqual(float(got.nested.offset), state.offset.item())
    else:
      np.testing.assert_array_equal(
          _bits(got.absmax), _bits(state.absmax.numpy()))
    want = functional.dequantize_4bit(packed, state).numpy().ravel()
    values = np.asarray(packing.unpack(got, scheme, x.shape)).ravel()
    values, want = (np.where(v == 0, 0, v) for v in (values, want))  # No -0.
    np.testing.assert_array_equal(_bits(values), _bits(want))
    simulated = np.asarray(jax.jit(scheme.fake_quantize)(x)).ravel()
    np.testing.assert_array_equal(simulated, values)

  @parameterized.parameters('nf4', 'fp4')
  def test_parity_on_many_values(self, name):
    for seed in range(5):
      self._check(name, _weights((1000, _VALUES // 5000), seed))

  @parameterized.product(
      kind=('nf4', 'fp4'), block=(32, 64, 256, 4096), double=('', '_dq'))
  def test_parity_of_blocks(self, kind, block, double):
    self._check(f'{kind}_b{block}{double}', _weights((301, 1001), 9))

  @parameterized.parameters(1, 5, 7, 8, 9, 31, 32, 255, 256, 257, 1000, 30000)
  def test_parity_of_means(self, n):
    import torch
    torch.set_num_threads(1)
    for seed in range(10):
      x = np.random.default_rng(seed).lognormal(size=n).astype(np.float32)
      self.assertEqual(float(jax.jit(nested.torch_mean)(x)),
                       torch.from_numpy(x).mean().item())


class NestedTest(absltest.TestCase):

  @pytest.mark.slow
  def test_matrices_of_a_stack_are_independent(self):
    scales = np.random.default_rng(0).lognormal(size=(3, 2, 700))
    scales = jnp.asarray(scales, jnp.float32)
    got = nested.fake_quantize(scales)
    for index in np.ndindex(3, 2):
      np.testing.assert_array_equal(
          got[index], nested.fake_quantize(scales[index]))

  @pytest.mark.medium
  def test_error_is_small(self):
    scales = np.random.default_rng(0).lognormal(size=5000).astype(np.float32)
    kept = nested.quantize(scales)
    self.assertEqual(kept.code.dtype, jnp.uint8)
    self.assertEqual(kept.absmax.shape, (20,))
    error = np.abs(nested.dequantize(kept) - scales)
    self.assertLess(error.max(), np.abs(scales - scales.mean()).max() / 100)
    self.assertLen(nested.code_book(), 256)


if __name__ == '__main__':
  absltest.main()
