"""Trees with absent leaves are aligned with the params."""

from absl.testing import absltest
from absl.testing import parameterized
import optax

from mansu_jax.quant import leaves

_HOLE = optax.MaskedNode()


class AlignTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('same', {'a': 1, 'b': [2, 3]}, {'a': 4, 'b': [5, 6]},
       {'a': 4, 'b': [5, 6]}),
      ('none_in_params', {'a': 1, 'b': None}, {'a': 4, 'b': 5},
       {'a': 4, 'b': None}),
      ('none_in_tree', {'a': 1, 'b': 2}, {'a': 4, 'b': None},
       {'a': 4, 'b': None}),
      ('masked_in_tree', {'a': 1, 'b': 2}, {'a': 4, 'b': _HOLE},
       {'a': 4, 'b': None}),
      ('subtree_of_params', {'a': 1, 'b': _HOLE}, {'a': 4, 'b': {'c': 5}},
       {'a': 4, 'b': None}),
      ('subtree_of_tree', {'a': 1, 'b': {'c': 2}}, {'a': 4, 'b': _HOLE},
       {'a': 4, 'b': {'c': None}}),
      ('all_of_tree', {'a': 1}, None, {'a': None}),
      ('other_containers', {'a': (1, 2)}, {'a': [4, 5]}, {'a': (4, 5)}),
      ('hole_that_only_the_tree_has', {'a': 1}, {'a': 4, 'b': None},
       {'a': 4}))
  def test_aligns(self, params, tree, want):
    self.assertEqual(leaves.align(tree, params, 'It'), want)

  @parameterized.named_parameters(
      ('missing', {'a': 1, 'b': 2}, {'a': 4}, "It has no leaf 'b'"),
      ('extra', {'a': 1}, {'a': 4, 'b': 5}, "It has a leaf 'b'"),
      ('deeper', {'a': 1}, {'a': {'c': 4}}, "no leaf 'a'"))
  def test_refuses(self, params, tree, message):
    with self.assertRaisesRegex(ValueError, message):
      leaves.align(tree, params, 'It')


class FlattenTest(absltest.TestCase):

  def test_refuses_two_leaves_with_the_same_name(self):
    with self.assertRaisesRegex(ValueError, "the name 'a/b'"):
      leaves.flatten({'a/b': 1, 'a': {'b': 2}})


if __name__ == '__main__':
  absltest.main()
