"""The measures of TOFU, against the figures of its published logs."""

import dataclasses
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.statistics import tofu

_LOGS = (pathlib.Path(__file__).resolve().parents[3]
         / 'shared/tofu/published_logs.npz')
_NAMES = {'loss': 'avg_gt_loss', 'paraphrased_loss': 'avg_paraphrased_loss',
          'wrong_loss': 'average_perturb_loss', 'rouge': 'rougeL_recall'}


def _answers(*, right=0.5, paraphrase=0.5, wrong=(0.25, 0.25), rouge=1.0, n=1):
  nats = lambda p: np.tile(-np.log(np.asarray(p, float)), (n, 1))
  return tofu.Answers(
      loss=nats(right)[:, 0], paraphrased_loss=nats(paraphrase)[:, 0],
      wrong_loss=nats(wrong), rouge=np.full(n, rouge))


class TofuTest(parameterized.TestCase):

  def test_by_hand(self):
    answers = _answers(right=0.5, paraphrase=0.4, wrong=(0.1, 0.3), n=3)
    np.testing.assert_allclose(answers.probability, [0.5] * 3)
    np.testing.assert_allclose(answers.probability_of_choice, [0.5 / 0.9] * 3)
    np.testing.assert_allclose(answers.truth_ratio, [0.2 / 0.4] * 3)
    np.testing.assert_allclose(
        answers.geometric_truth_ratio, [0.03**0.5 / 0.4] * 3)
    self.assertAlmostEqual(answers.forgotten_truth_ratio, 0.5)
    self.assertAlmostEqual(answers.retained_truth_ratio, 0.5)
    wrong = _answers(paraphrase=0.1, wrong=(0.2, 0.2))
    self.assertAlmostEqual(wrong.forgotten_truth_ratio, 0.5)
    self.assertEqual(wrong.retained_truth_ratio, 0)

  def test_utility_by_hand(self):
    split = _answers(right=0.5, paraphrase=0.5, wrong=(0.25, 0.25), rouge=0.8)
    got = tofu.model_utility(
        retain=split, real_authors=split, world_facts=split)
    self.assertAlmostEqual(got, 9 / (3 / 0.5 + 3 / 0.8 + 3 / 0.5))
    nothing = dataclasses.replace(split, rouge=np.zeros(1))
    self.assertEqual(tofu.model_utility(
        retain=split, real_authors=nothing, world_facts=split), 0)

  def test_equal_models_have_forgotten(self):
    rng = np.random.default_rng(0)
    losses = lambda shift: tofu.Answers(
        loss=rng.uniform(0, 3, 200), rouge=rng.uniform(0, 1, 200),
        paraphrased_loss=rng.uniform(0, 3, 200) - shift,
        wrong_loss=rng.uniform(0, 3, (200, 5)))
    gold = losses(0)
    self.assertEqual(tofu.forget_quality(gold, gold).p_value, 1)
    self.assertGreater(tofu.forget_quality(losses(0), gold).p_value, 0.05)
    self.assertLess(tofu.forget_quality(losses(1), gold).p_value, 1e-6)

  @parameterized.named_parameters(
      ('questions', {'rouge': np.ones(2)}, 'shapes'),
      ('no_wrong_ones', {'wrong_loss': np.ones((1, 0))}, 'shapes'),
      ('one_axis', {'wrong_loss': np.ones(1)}, 'shapes'),
      ('nan', {'loss': np.array([np.nan])}, 'loss has a value'))
  def test_refuses(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(_answers(), **changes)

  def test_no_questions_are_refused(self):
    with self.assertRaisesRegex(ValueError, 'shapes'):
      _answers(n=0)

  @absltest.skipUnless(_LOGS.is_file(), 'no published logs beside the project')
  def test_published_logs(self):
    logs = np.load(_LOGS)

    def split(model, name):
      return tofu.Answers(**{field: logs[f'{model}/{name}/{key}']
                             for field, key in _NAMES.items()})

    for model, utility, ratio in (
        ('full', 0.58589, 0.53037), ('retain90', 0.57524, 0.67965)):
      got = tofu.model_utility(**{
          name: split(model, name)
          for name in ('retain', 'real_authors', 'world_facts')})
      self.assertAlmostEqual(got, utility, delta=5e-6)
      forget = split(model, 'forget')
      self.assertAlmostEqual(forget.forgotten_truth_ratio, ratio, delta=5e-6)
      np.testing.assert_allclose(
          forget.geometric_truth_ratio, logs[f'{model}/forget/truth_ratio'],
          rtol=1e-5)
    found = tofu.forget_quality(
        split('full', 'forget'), split('retain90', 'forget'))
    self.assertAlmostEqual(found.statistic, 0.39667, delta=5e-6)
    self.assertAlmostEqual(found.p_value / 1.834e-21, 1, delta=5e-4)


if __name__ == '__main__':
  absltest.main()
