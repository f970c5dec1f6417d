"""Results do not depend on the number and arrangement of devices."""

import math
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mansu_jax.config import run as run_config
from mansu_jax.models import decoder
from mansu_jax.models import layout
from mansu_jax.runtime import sharding
from tests.mesh import launch
from tests.models import tiny


class MeshTest(parameterized.TestCase):

  @parameterized.parameters(
      ((1, -1, 1), (1, 8, 1)), ((-1, 2, 2), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)),
      ((8, -1, 1), (8, 1, 1)))
  def test_sizes(self, asked, want):
    options = run_config.MeshConfig(**dict(zip(sharding.AXES, asked)))
    self.assertEqual(sharding.axis_sizes(options, 8), want)

  @parameterized.parameters(
      ((1, 3, -1), 'mesh_fsdp=3.* does not divide the number of devices, 8'),
      ((1, 4, 1), 'use 4 of 8 devices'),
      ((16, 1, 1), 'does not divide the number of devices, 8'))
  def test_sizes_that_do_not_fit(self, asked, message):
    options = run_config.MeshConfig(**dict(zip(sharding.AXES, asked)))
    with self.assertRaisesRegex(ValueError, message):
      sharding.axis_sizes(options, 8)

  @parameterized.parameters((0, 1, 1), (-1, -1, 1), (1, -2, 1))
  def test_non_positive_sizes_are_refused(self, data, fsdp, tensor):
    with self.assertRaisesRegex(
        ValueError, 'mesh axes must be positive; at most one may be -1'):
      run_config.MeshConfig(data=data, fsdp=fsdp, tensor=tensor)

  def test_every_leaf_has_its_axes(self):
    for tied in (True, False):
      shapes = decoder.abstract(tiny.config(tie_embeddings=tied))
      for path, leaf in jax.tree.leaves_with_path(shapes):
        name = '/'.join(key.key for key in path)
        self.assertLen(layout.AXES[name], leaf.ndim)

  def test_without_a_mesh_nothing_is_split(self):
    x = np.zeros((4, 2))
    self.assertIs(sharding.constrain_rows(x), x)
    self.assertEqual(sharding.num_row_shards(), 1)
    self.assertEqual(sharding.round_up_rows(5), 5)

  def test_to_host_gathers_everything(self):
    x = np.ones((2, 3), np.float32)
    self.assertIs(sharding.to_host(x), x)
    self.assertIs(sharding.to_host_uncached(x), x)
    got = sharding.to_host({'x': jnp.asarray(x), 'none': None, 'host': x})
    self.assertIsInstance(got['x'], np.ndarray)
    np.testing.assert_array_equal(got['x'], x)
    self.assertIsNone(got['none'])
    self.assertIs(got['host'], x)
    self.assertTrue(sharding.is_local(x) and sharding.is_local(jnp.asarray(x)))

  @pytest.mark.slow
  def test_scores_and_gradients_are_the_same(self):
    said = launch.alone('tests.mesh.first_step')
    self.assertLen(re.findall('equal', said), 2)
    for data, fsdp, tensor, share in re.findall(
        r'\((\d), (\d), (\d)\): equal; ([\d.]+) of', said):
      parts = math.prod(map(int, (data, fsdp, tensor)))
      # Each device has its own rows, and not all of them.
      self.assertLess(float(share), 1.6 / parts)
    self.assertNotIn('slices whole', said)

  @pytest.mark.slow
  def test_greedy_tokens_are_the_same(self):
    said = launch.alone('tests.mesh.generate')
    self.assertEqual(
        re.findall(r'\): (.*)', said),
        ['equal; (3, 2, 16, 2, 6)', 'equal; (3, 2, 16, 2, 6)',
         'equal; (3, 8, 16, 1, 6)', 'equal; (3, 2, 16, 1, 6)'])

  @pytest.mark.slow
  def test_attacks_are_the_same_and_compile_once(self):
    said = launch.alone('tests.mesh.attack')
    self.assertEqual(said.splitlines(), ['equal; compiled 1'] * 2)


if __name__ == '__main__':
  absltest.main()
