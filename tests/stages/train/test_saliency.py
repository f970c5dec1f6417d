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
from tests.models import tiny
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
    return edit, saliency.restrict(options, edit, self._batch, cache)

  def _batch(self, step):
    """Another forget sequence each step; the last one counts most."""
    weight = np.array(self.batch.forget.weight)
    weight[self.batch.forget.sequence != step % 3] = 0
    return self.batch._replace(forget=self.batch.forget._replace(
        weight=weight * (1 + 9 * (step == saliency.BATCHES - 1))))

  @parameterized.parameters(0.05, 0.3)
  def test_only_the_largest_move(self, share):
    options = _options(saliency=share)
    whole, edit = self._restricted(options)
    # The gradient of the forget term by itself.
    loss = objective.make_loss(
        _options(kl_weight=0.0, nll_weight=0.0), whole.forward, whole.unembed)
    fn = jax.jit(jax.grad(loss, has_aux=True))
    gradients = [fn(whole.theta, whole.base, whole.base, self._batch(step))[0]
                 for step in range(saliency.BATCHES)]
    gradient = jax.tree.map(lambda *each: sum(each), *gradients)
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

  def test_without_it(self):
    whole, edit = self._restricted(_options())
    self.assertIs(whole, edit)

  @parameterized.parameters(
      ({'last_layer': 0}, None, {0}), ({'matrices': ('k',)}, 'k', {0, 1}),
      ({'matrices': ('k', 'o'), 'first_layer': 1}, None, {1}))
  def test_a_share_of_what_is_trained(self, some, name, layers):
    _, edit = self._restricted(_options(saliency=0.05, **some))
    (found, at), = edit.report['salient'].items()
    self.assertIn(name or found.split('/')[-1], found)
    self.assertContainsSubset(at, layers)
    self.assertGreater(edit.report['movable'], 0)

  def test_a_resumed_run_measures_nothing(self):
    folder = tiny.temp_dir(self)
    options = _options(saliency=0.3)
    with checkpoints.StageCache(folder, resume=True) as cache:
      _, edit = self._restricted(options, cache)
    with (checkpoints.StageCache(folder, resume=True) as cache,
          mock.patch.object(saliency, 'program') as program):
      _, again = self._restricted(options, cache)
    program.assert_not_called()
    self.assertEqual(again.report, edit.report)

  def test_ties_and_bad_norms(self):
    all_of = lambda norms: {k: np.ones(len(x), bool) for k, x in norms.items()}
    norms = {'q': np.array([1.0, 1.0]), 'k': np.array([1.0, 0.0])}
    found = saliency.largest(norms, 0.5, all_of(norms))
    self.assertEqual(sum(x.sum() for x in found.values()), 2)
    found = saliency.largest(norms, 1.0, all_of(norms))
    np.testing.assert_array_equal(found['k'], [True, False])  # No gradient.
    for bad in (0.0, np.nan):
      norms = {'q': np.array([bad, bad])}
      with self.assertRaisesRegex(ValueError, '0 in every matrix'):
        saliency.largest(norms, 0.5, all_of(norms))


if __name__ == '__main__':
  absltest.main()
