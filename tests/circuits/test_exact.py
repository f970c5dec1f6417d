"""Scores and patching of every family against exact patching in float64."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest

from mansu_jax.circuits import faithfulness
from mansu_jax.circuits import graph
from mansu_jax.circuits.edges import edge_patching
from mansu_jax.circuits.edges import edges
from mansu_jax.models import families as families_lib
from mansu_jax.models import sites
from tests import families
from tests.circuits import exact
from tests.circuits import golden

_SITES = {'heads': sites.Site.HEAD_OUT, 'neurons': sites.Site.MLP_HIDDEN}
# Their layers have parts that those of the others do not.
_FIRST = families.named('qwen2', 'gemma2', 'gemma3_text', 'gpt2', 'gpt_neox')
_ALL = families.named(*families.FIELDS)
_REST = tuple(one for one in _ALL if one not in _FIRST)


@functools.cache
def _case(family):
  return exact.Case(families.config(family))


class ExactScoresTest(parameterized.TestCase):

  def test_every_family_has_a_case(self):
    for table in (families.FIELDS, families.TRAINED):
      self.assertEqual(table.keys(), families_lib.FAMILIES.keys())

  def _check_slopes(self, family):
    # A score is linear in the patch, so this holds for patches of any size.
    case = _case(family)
    errors = case.errors_of_scores(case.slopes())
    self.assertLess(max(errors.values()), 3e-5, errors)

  def _check_small_patches(self, family):
    far, near = (
        case.errors_of_scores(case.patched()) for case in (
            exact.Case(families.config(family), nearness)
            for nearness in (1e-2, 1e-3)))
    self.assertLess(max(near.values()), 0.02, near)
    for kind, error in near.items():  # Of first order in the nearness.
      self.assertLess(error, 0.15 * far[kind], kind)

  @parameterized.named_parameters(*_FIRST)
  @pytest.mark.medium
  def test_scores_are_slopes_of_patching(self, family):
    self._check_slopes(family)

  @parameterized.named_parameters(*_FIRST)
  @pytest.mark.medium
  def test_scores_are_effects_of_small_patches(self, family):
    self._check_small_patches(family)

  @parameterized.named_parameters(*_REST)
  @pytest.mark.slow
  def test_scores_of_the_other_families(self, family):
    self._check_slopes(family)
    self._check_small_patches(family)

  @parameterized.named_parameters(*_ALL)
  @pytest.mark.slow
  def test_what_leaves_the_input_is_the_whole_effect(self, family):
    case, points = _case(family), 1000
    got = edges.pair_scores(
        case.config, case.params, case.batch,
        points=tuple((k + 0.5) / points for k in range(points)))
    clean, corrupt = map(case.metric, case.ends)
    np.testing.assert_allclose(
        got.edges[:, 0].sum(-1), clean - corrupt, rtol=0, atol=5e-4)


class ExactPatchingTest(parameterized.TestCase):

  def _check_edges(self, family):
    case = _case(family)
    config, params, batch = case.config, case.params, case.batch
    real = np.array([
        [source in case.reads[target] for target in edges.target_names(config)]
        for source in edges.source_names(config)])
    np.testing.assert_array_equal(edges.is_edge(config), real)
    self.assertLess(golden.largest(
        edge_patching.exact_scores(config, params, batch),
        case.patched()['edges']), 1e-5)
    reference = edge_patching.corrupted(config, params, batch)
    for seed in range(3):
      some = np.random.default_rng(seed).random(real.shape) < 0.5
      np.testing.assert_allclose(
          edge_patching.metric(config, params, batch, reference, some),
          case.patched_together(some), rtol=0, atol=3e-5)

  @parameterized.named_parameters(*_FIRST)
  @pytest.mark.medium
  def test_edges(self, family):
    self._check_edges(family)

  @parameterized.named_parameters(*_REST)
  @pytest.mark.slow
  def test_edges_of_the_other_families(self, family):
    self._check_edges(family)

  @parameterized.named_parameters(*_ALL)
  @pytest.mark.slow
  def test_heads_and_neurons(self, family):
    case = _case(family)
    config, params, batch = case.config, case.params, case.batch
    _, corrupt = faithfulness.corrupted(config, params, batch)
    shapes = {kind: graph.shapes(config)[kind] for kind in _SITES}

    def metric(kind=None, node=None):
      keep = {_SITES[one]: np.ones(shapes[one]) for one in shapes}
      if kind:
        keep[_SITES[kind]][node] = 0
      return faithfulness.patched_metric(
          config, params, batch, corrupt, keep)

    for kind, want in case.patched().items():
      if kind in _SITES:
        got = [metric() - metric(kind, node) for node in np.ndindex(
            shapes[kind])]
        self.assertLess(golden.largest(
            np.stack(got, 1).reshape(want.shape), want), 1e-5, kind)


if __name__ == '__main__':
  absltest.main()
