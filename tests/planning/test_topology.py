"""Names of TPU slices, and the present devices."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from mansu_jax.planning import topology


class TopologyTest(parameterized.TestCase):

  @parameterized.parameters('this', 'v5e:2x4', 'v5p:2x2x4', 'v6e:16x16')
  def test_names(self, name):
    topology.check(name)

  @parameterized.parameters('', 'v5e', 'v5e:8', 'v5e:0x4', 'h100:1x1', 'v5e:2x4 ', 'This')
  def test_unknown_names_are_refused(self, name):
    with self.assertRaisesRegex(ValueError, 'wanted `this`, or a slice of'):
      topology.check(name)

  def test_find_this_returns_present_devices(self):
    devices, chip = topology.find('this')
    self.assertEqual(devices, jax.devices())
    self.assertGreater(chip.memory, 2**28)
    self.assertGreater(min(chip.flops, chip.bandwidth), 1e8)

  def test_without_the_compiler(self):
    with mock.patch.dict('sys.modules', {'libtpu': None}):
      with self.assertRaisesRegex(ValueError, r"pip install -e '.\[plan\]'"):
        topology.find('v5e:2x4')


if __name__ == '__main__':
  absltest.main()
