"""The layers to edit: by hand, and on a model whose mover is known."""

import dataclasses
import types

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import run as run_config
from mansu_jax.data import questions as questions_lib
from mansu_jax.data import splits as splits_lib
from mansu_jax.erasure import mover_layer
from mansu_jax.stages.prepare import answer_layers
from tests import tiny_job


class LayersTest(parameterized.TestCase):

  @parameterized.parameters(
      (30, 23, (13, 23)), (30, 5, (0, 5)), (32, None, (14, 24)),
      (4, 2, (1, 2)), (1, None, (0, 0)))
  def test_a_third_of_the_layers_up_to_the_mover(self, count, mover, want):
    found = answer_layers.Found(
        mover=mover and mover_layer.Mover(mover, True, []), source='forget')
    self.assertEqual(found.layers(count), want)

  @parameterized.parameters(
      (None, None, (13, 23)), (None, 29, (19, 29)), (None, -1, (19, 29)),
      (5, None, (5, 23)), (3, 9, (3, 9)), (None, 4, (0, 4)))
  def test_given_layers_stay(self, first, last, want):
    options = run_config.CircuitConfig(
        first_layer=first, last_layer=last, budget=0.02)
    got = answer_layers.resolve(
        options, answer_layers.Found(
            mover=mover_layer.Mover(23, True, []), source='forget'), 30)
    self.assertEqual((got.first_layer, got.last_layer % 30), want)
    self.assertEqual(
        dataclasses.replace(got, first_layer=first, last_layer=last), options)


class FindTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.looked = []

    def find(config, params, questions):
      del config, params
      self.looked.append(len(questions))
      if len(self.looked) <= self.failures:
        raise mover_layer.NoLead('no lead')
      return mover_layer.Mover(3, True, [1.0, 0.0])

    self.failures = 0
    self.enter_context(
        absltest.mock.patch.object(mover_layer, 'find', find))

  def _find(self):
    model = types.SimpleNamespace(
        config=None, params=None, tokenizer=tiny_job.base(train=False)[2])
    splits = splits_lib.build_splits(**{
        role: [questions_lib.parse(role, q) for q in found]
        for role, found in tiny_job.questions().items()}, text=[])
    return answer_layers.find(splits, model, seed=0, chat=False)

  def test_the_forget_set_shows_it_or_else_the_retain_set(self):
    got = self._find()
    self.assertEqual((got.layer, got.source), (3, 'forget'))
    self.failures = 2
    got = self._find()
    self.assertEqual((got.layer, got.source), (3, 'retain'))

  def test_without_it_the_reasons_are_kept(self):
    self.failures = 9
    with self.assertLogs(level='WARNING') as logs:
      got = self._find()
    self.assertEqual((got.mover, got.source), (None, 'no lead; no lead'))
    self.assertIn('The mover layer was not found: no lead', logs.output[0])

  @parameterized.parameters(
      (dict(first_layer=1, last_layer=2), {}, False),
      (dict(first_layer=1, last_layer=2), dict(loss='npo'), False),
      (dict(first_layer=1), dict(loss='npo'), True),
      (dict(last_layer=1), dict(loss='npo'), True),
      (dict(first_layer=1, last_layer=2), dict(routed_weight=0.5), True))
  def test_it_is_needed_where_it_is_used(self, layers, options, want):
    self.assertEqual(answer_layers.is_needed(run_config.RunConfig(
        circuit=run_config.CircuitConfig(**layers),
        unlearn=run_config.UnlearnConfig(**options))), want)


if __name__ == '__main__':
  absltest.main()
