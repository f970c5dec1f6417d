"""Attribution computes its matrix products in float32 precision.

By default a TPU computes a float32 product from bfloat16 parts.
"""

import functools
import re

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax.circuits import eap_ig
from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits import pair_batches
from mansu_jax.circuits.edges import edge_patching
from mansu_jax.circuits.edges import edges
from mansu_jax.data import pairs as pairs_lib
from tests.circuits import small

_CONFIG = small.config()


def _keep():
  nodes = graph.empty(_CONFIG)
  return {faithfulness._SITE[kind]: nodes[kind]
          for kind in ('neurons', 'heads')}


class PrecisionTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.params = small.params(_CONFIG)
    (cls.batch,) = pair_batches.pack([pairs_lib.AttributionPair(
        (3, 4, 5), (6, 4, 5), 7, 8, fact='f')], 1)

  def _check(self, program, *args):
    text = str(jax.make_jaxpr(program)(*args))
    products = text.count('dot_general[')
    self.assertGreater(products, 0)
    self.assertLen(re.findall('[ (]precision=.*HIGHEST', text), products)

  def test_nodes(self):
    self._check(functools.partial(eap_ig.pair_scores, _CONFIG, steps=2),
                self.params, self.batch)

  def test_edges(self):
    self._check(functools.partial(edges.pair_scores, _CONFIG, points=(0., .5)),
                self.params, self.batch)

  def test_circuits_of_nodes(self):
    corrupted = functools.partial(faithfulness.corrupted, _CONFIG)
    self._check(corrupted, self.params, self.batch)
    _, taps = corrupted(self.params, self.batch)
    self._check(
        functools.partial(faithfulness.patched_metric, _CONFIG), self.params,
        self.batch, taps, _keep())

  def test_circuits_of_edges(self):
    corrupted = functools.partial(edge_patching.corrupted, _CONFIG)
    self._check(corrupted, self.params, self.batch)
    self._check(
        functools.partial(edge_patching.metric, _CONFIG), self.params,
        self.batch, corrupted(self.params, self.batch),
        np.zeros_like(edges.is_edge(_CONFIG)))


if __name__ == '__main__':
  absltest.main()
