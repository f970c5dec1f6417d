"""Runs the docstring examples of the data modules."""

import doctest

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.data import batching
from mansu_jax.data import packing
from mansu_jax.data import pairs
from mansu_jax.data import questions
from mansu_jax.data import splits
from mansu_jax.data import subjects
from mansu_jax.data import tokenization
from mansu_jax.data.readers import jsonl
from mansu_jax.data.readers import pair_files
from mansu_jax.data.readers import text


class ExamplesTest(parameterized.TestCase):

  @parameterized.parameters(
      batching, packing, pairs, questions, splits, subjects, tokenization,
      jsonl, pair_files, text)
  def test_examples_run(self, module):
    failed, attempted = doctest.testmod(module)
    self.assertGreater(attempted, 0)
    self.assertEqual(failed, 0)


if __name__ == '__main__':
  absltest.main()
