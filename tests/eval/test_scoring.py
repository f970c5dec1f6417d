"""Layers that models share run once."""

from absl.testing import absltest
import numpy as np

from mansu_jax.eval import accuracy
from mansu_jax.eval import scoring
from tests.eval import test_accuracy
from tests.eval import toy_model


class HiddenCacheTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.task = accuracy.build_task(
        test_accuracy.some_questions(30), toy_model.ToyTokenizer(),
        token_budget=128)
    self.models = [toy_model.init(0), dict(toy_model.init(0))]
    self.models[1]['up'] = toy_model.init(1)['up']
    self.ran = []

  def _run_prefix(self, params, tokens, positions, attention_mask):
    del attention_mask
    return params['embed'][tokens] + params['place'][positions]

  def _apply(self, params, x, positions, attention_mask):
    del positions
    seen = attention_mask / attention_mask.sum(-1, keepdims=True)
    return x + seen @ (x @ params['up'])

  def _run_all(self, params, *batch):
    return self._apply(params, self._run_prefix(params, *batch), *batch[1:])

  def _scores(self, cache):
    scorer = scoring.Scorer(
        self._apply, toy_model.unembed, prefix=self._run_prefix)
    inner = scorer._prefix

    def counted(*args):
      self.ran.append(1)
      return inner(*args)

    scorer._prefix = counted
    return [accuracy.score(scorer, params, self.task, cache).logprob
            for params in self.models]

  def _check(self, got):
    scorer = scoring.Scorer(self._run_all, toy_model.unembed)
    for params, found in zip(self.models, got):
      np.testing.assert_allclose(
          found, accuracy.score(scorer, params, self.task).logprob, rtol=1e-5)
    self.assertFalse(np.allclose(*got))

  def _times_prefix_ran(self):
    shapes_asked = 2  # Once a model, of nothing.
    return len(self.ran) - shapes_asked

  def test_shared_layers_run_for_the_first_model_only(self):
    self._check(self._scores(scoring.HiddenCache()))
    self.assertEqual(self._times_prefix_ran(), len(self.task.batches))

  def test_batches_beyond_the_cache_run_again(self):
    size = self._run_prefix(
        self.models[0], *[getattr(self.task.batches[0], name) for name in (
            'tokens', 'positions', 'attention_mask')]).nbytes
    count = len(self.task.batches)
    self.assertGreater(count, 2)
    self._check(self._scores(scoring.HiddenCache(2 * size)))
    self.assertEqual(self._times_prefix_ran(), 2 * count - 2)

  def test_without_a_cache_every_model_runs_all_layers(self):
    self._check(self._scores(None))
    self.assertEqual(self._times_prefix_ran(), 2 * len(self.task.batches))


class ProgramsTest(absltest.TestCase):
  """The planned programs equal the programs that run."""

  def _ran(self, prefix):
    toy = HiddenCacheTest()
    toy.setUp()
    scorer = scoring.Scorer(
        toy._apply if prefix else toy._run_all, toy_model.unembed,
        prefix=toy._run_prefix if prefix else None)
    names = ('_prefix', '_apply', '_normalized') if prefix else (
        '_apply', '_normalized')
    said = dict.fromkeys(names, 0)
    for call in scorer.programs(
        toy.models[0], toy.task.batches, toy.task.positions, toy.task.targets):
      (name,) = (n for n in names if getattr(scorer, n) is call.fn)
      call.fn.lower(*call.args)  # The shapes fit.
      self.assertEqual(call.shared, name == '_prefix')
      said[name] += call.calls
    ran = dict.fromkeys(names, 0)
    for name in names:
      inner = getattr(scorer, name)

      def counted(*args, name=name, inner=inner):
        ran[name] += 1
        return inner(*args)

      setattr(scorer, name, counted)
    accuracy.score(scorer, toy.models[0], toy.task)
    return said, ran

  def test_planned_programs_without_shared_layers(self):
    said, ran = self._ran(False)
    ran['_apply'] -= 1  # Asked for its shape.
    self.assertEqual(said, ran)

  def test_planned_programs_with_shared_layers(self):
    said, ran = self._ran(True)
    for name in ('_prefix', '_apply'):
      ran[name] -= 1
    self.assertEqual(said, ran)


if __name__ == '__main__':
  absltest.main()
