"""Layouts name the leaves that a model has."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax import tree_paths
from mansu_jax.models import decoder
from mansu_jax.models import layout
from tests.models import tiny


class LayoutTest(parameterized.TestCase):

  @parameterized.parameters(False, True)
  def test_every_leaf_has_a_layout_or_none(self, tied):
    config = tiny.config(tie_embeddings=tied)
    found = tree_paths.flatten(layout.block_layout(config))
    leaves = tree_paths.flatten(decoder.abstract(config))
    self.assertEqual(set(found), set(leaves))
    for name, leaf in leaves.items():
      self.assertEqual(found[name], layout.MATRICES.get(name))
      self.assertLen(layout.AXES[name], leaf.ndim)


if __name__ == '__main__':
  absltest.main()
