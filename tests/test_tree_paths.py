"""Leaf names, and comparison of structures."""

import gc
import weakref

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax import tree_paths

_TREE = {'b': {'y': 1, 'x': {'deep': 2}}, 'a': None}


class NamesTest(absltest.TestCase):

  def test_names_join_keys_and_none_is_a_leaf(self):
    self.assertEqual(
        tree_paths.flatten(_TREE), {'a': None, 'b/x/deep': 2, 'b/y': 1})

  def test_unflatten_is_the_inverse(self):
    self.assertEqual(tree_paths.unflatten(tree_paths.flatten(_TREE)), _TREE)

  def test_names_follow_the_order_of_jax(self):
    tree = {'b': 1, 'a': {'d': 2, 'c': 3}}
    self.assertEqual(
        list(tree_paths.flatten(tree).values()), jax.tree.leaves(tree))

  def test_map_passes_names_and_matching_leaves(self):
    other = {'a': 7, 'b': {'x': {'deep': 8}, 'y': 9}}
    got = tree_paths.map_named(lambda *args: args, _TREE, other)
    self.assertEqual(got, {
        'a': ('a', None, 7),
        'b': {'x': {'deep': ('b/x/deep', 2, 8)}, 'y': ('b/y', 1, 9)}})

  def test_leaves_are_freed_with_their_tree(self):
    tree = {'a': {'b': np.zeros(3)}}
    leaf = weakref.ref(tree['a']['b'])
    gc.disable()
    self.addCleanup(gc.enable)
    tree_paths.unflatten(tree_paths.flatten(tree))
    tree_paths.map_named(lambda name, x: None, tree)
    del tree
    self.assertIsNone(leaf())

  def test_counts_scalars_of_arrays_and_shapes(self):
    tree = {'w': np.zeros((2, 3)), 'n': {'b': np.zeros(5)}, 'none': None}
    self.assertEqual(tree_paths.count(tree), 11)
    self.assertEqual(
        tree_paths.count(jax.eval_shape(lambda: {'w': np.zeros((4, 2))})), 8)


class StructureTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('missing', {'w': np.zeros(2)}, "Fisher lacks the leaf 'n/b'"),
      ('extra', {'w': np.zeros(2), 'n': {'b': np.zeros(3), 'c': np.zeros(1)}},
       "Fisher has the unknown leaf 'n/c'"),
      ('shape', {'w': np.zeros(2), 'n': {'b': np.zeros(4)}},
       r"Fisher has shape \(4,\) at 'n/b'; wanted \(3,\)"),
      ('none', {'w': np.zeros(2), 'n': {'b': None}},
       r"Fisher has shape None at 'n/b'"))
  def test_the_error_names_the_leaf(self, got, message):
    want = {'w': np.zeros(2), 'n': {'b': np.zeros(3)}}
    with self.assertRaisesRegex(ValueError, message):
      tree_paths.check_same_structure(got, want, 'Fisher')

  def test_equal_structures_pass(self):
    tree = {'w': np.zeros(2), 'n': {'b': None}}
    tree_paths.check_same_structure(
        {'n': {'b': None}, 'w': np.ones(2)}, tree, 'Fisher')


if __name__ == '__main__':
  absltest.main()
