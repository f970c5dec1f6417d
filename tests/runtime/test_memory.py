"""Batch sizes by the memory of a device."""

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


if __name__ == '__main__':
  absltest.main()
