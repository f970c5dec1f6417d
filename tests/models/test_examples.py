"""Runs the docstring examples of the model and evaluation modules."""

import doctest

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.eval import accuracy
from mansu_jax.eval import perplexity
from mansu_jax.eval import weight_change
from mansu_jax.models import config
from mansu_jax.models import decoder
from mansu_jax.models import sites
from mansu_jax.models.families import llama
from mansu_jax.models.io import hf_io
from mansu_jax.models.io import loading


class ExamplesTest(parameterized.TestCase):

  @parameterized.parameters(
      accuracy, perplexity, weight_change, config, decoder, sites, llama, hf_io,
      loading)
  def test_examples_run(self, module):
    failed, attempted = doctest.testmod(module)
    self.assertGreater(attempted, 0)
    self.assertEqual(failed, 0)


if __name__ == '__main__':
  absltest.main()
