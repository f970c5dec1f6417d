"""The matrices with the largest forget gradient; training of these alone."""

from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from mansu_jax import tree_paths
from mansu_jax.config import run as run_config
from mansu_jax.models import layout
from mansu_jax.runtime import checkpoints
from mansu_jax.stages.train import saliency
from mansu_jax.stages.train import training
from mansu_jax.stages.train import whole_edits
from mansu_jax.unlearn import objective
from tests.unlearn import problem

_PLAIN = run_config.EditConfig(projection='none', floor='none')


def _options(**changes):
  return problem.options(**{
      'quantizer_in_loop': False, 'steps': 3, 'learning_rate': 1e-2, **changes})


class SaliencyTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.batch = problem.batch(problem.hidden_of_model())

  def _restricted(self, options, cache=checkpoints.NoCache()):
    edit = whole_edits.make(problem.model(), options, seed=0)
    return edit, saliency.restrict(
        options, edit, lambda step: self.batch, cache)

  @parameterized.parameters(0.05, 0.3)
  def test_only_the_largest_move(self, share):
    options = _options(saliency=share)
    whole, edit = self._restricted(options)
    # The gradient of the forget term by itself.
    loss = objective.make_loss(
        _options(kl_weight=0.0, nll_weight=0.0), whole.forward, whole.unembed)
    gradient, _ = jax.jit(jax.grad(loss, has_aux=True))(
        whole.theta, whole.base, whole.base, self.batch)
    norms = {(name, layer): np.linalg.norm(x[layer])
             for name, x in tree_paths.flatten(gradient).items()
             if name in layout.MATRICES for layer in range(len(x))}
    count = int(np.ceil(share * len(norms)))
    want = set(sorted(norms, key=norms.get, reverse=True)[:count])
    self.assertEqual({(name, layer) for name, layers in
                      edit.report['salient'].items() for layer in layers}, want)
    done = training.unlearn(
        options, _PLAIN, edit, None, lambda step: self.batch, total_weights=1)
    before, after = map(tree_paths.flatten, (edit.theta, done['theta']))
    moved, weights = set(), 0
    for name, x in before.items():
      differs = np.asarray(x != after[name])
      if name in layout.MATRICES:
        moved |= {(name, layer) for layer in range(len(x))
                  if differs[layer].any()}
        weights += sum(x[0].size for n, _ in want if n == name)
      else:
        self.assertFalse(differs.any(), name)
    self.assertEqual(moved, want)
    self.assertEqual(edit.report['movable'], weights)

  def test_without_it_and_within_some_layers(self):
    whole, edit = self._restricted(_options())
    self.assertIs(whole, edit)
    _, edit = self._restricted(_options(saliency=0.9, last_layer=0))
    part = tree_paths.flatten(edit.movable)
    self.assertTrue(np.any(part['layers/mlp/down'][0]))
    self.assertFalse(np.any(part['layers/mlp/down'][1:]))

  def test_a_resumed_run_measures_nothing(self):
    cache = mock.Mock()
    norms = {name: np.zeros(problem.CONFIG.num_layers)
             for name in ('layers/attn/q', 'layers/mlp/down')}
    norms['layers/attn/q'][1] = 1.0
    cache.get_or_compute.return_value = norms
    _, edit = self._restricted(_options(saliency=0.1), cache)
    self.assertEqual(edit.report['salient'], {'layers/attn/q': [1]})


if __name__ == '__main__':
  absltest.main()
