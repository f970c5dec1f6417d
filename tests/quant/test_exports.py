"""The public names of `mansu_jax.quant`, which are imported at first use."""

import ast
import importlib
import pathlib

from absl.testing import absltest

from mansu_jax import quant


class ExportsTest(absltest.TestCase):

  def test_names_equal_those_for_the_type_checker(self):
    tree = ast.parse(pathlib.Path(quant.__file__).read_text(encoding='utf-8'))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = {
        alias.name: node.module for node in block.body for alias in node.names}
    self.assertEqual(set(declared), set(quant.__all__))
    for name, module in declared.items():
      try:
        want = importlib.import_module(f'{module}.{name}')
      except ModuleNotFoundError:
        want = getattr(importlib.import_module(module), name)
      self.assertIs(getattr(quant, name), want, name)
      self.assertIn(name, dir(quant))

  def test_an_unknown_name(self):
    with self.assertRaisesRegex(AttributeError, "no attribute 'nf3'"):
      quant.nf3  # pylint: disable=pointless-statement


if __name__ == '__main__':
  absltest.main()
