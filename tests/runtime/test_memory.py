"""Batch sizes by the memory of a device."""

import os
import pathlib
import sys
import unittest

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp

from mansu_jax.runtime import memory


class MemoryTest(parameterized.TestCase):

  @parameterized.parameters(
      (4, 1, 4), (4, 30, 3), (4, 1000, 1), (4, 0, 4), (1, 1, 1))
  def test_a_batch_fits_a_tenth_of_the_memory(self, most, each, want):
    with memory.planned(1000):
      self.assertEqual(memory.fitting(most, each), want)

  def test_planned_devices_end_with_the_block(self):
    before = memory.device_bytes()
    with self.assertRaises(KeyError):
      with memory.planned(7):
        self.assertEqual(memory.device_bytes(), 7)
        raise KeyError
    self.assertEqual(memory.device_bytes(), before)
    self.assertGreater(before, 2**28)

  def test_bytes_of_arrays_and_shapes(self):
    x = jnp.ones((3, 5), jnp.bfloat16)
    self.assertEqual(memory.bytes_of(x), 30)
    self.assertEqual(
        memory.bytes_of(jax.ShapeDtypeStruct((3, 5), jnp.float32)), 60)

  @unittest.skipUnless(sys.platform == 'linux', 'reads /proc')
  def test_freed_memory_returns_to_the_system(self):
    resident = lambda: int(
        pathlib.Path('/proc/self/statm').read_text().split()[1]) * (
            os.sysconf('SC_PAGE_SIZE'))
    blocks = [bytearray(2**12) for _ in range(30_000)]  # 120 MB
    last = bytearray(2**12)  # Keeps the top of the heap in use.
    full = resident()
    del blocks
    memory.release_unused()
    self.assertLess(resident(), full - 2**26)
    self.assertLen(last, 2**12)


if __name__ == '__main__':
  absltest.main()
