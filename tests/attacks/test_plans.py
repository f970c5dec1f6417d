"""Attacks by kind, learning rate and steps."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.attacks import plans


class PlansTest(parameterized.TestCase):

  def test_each_kind_runs_at_each_rate(self):
    made = plans.make(('relearn', 'lora', 'benign'), ('3e-5', '1e-4'), 20)
    self.assertEqual([plan.name for plan in made], [
        'relearn_3e-5', 'relearn_1e-4', 'lora_3e-4', 'lora_1e-3',
        'benign_3e-5', 'benign_1e-4'])
    self.assertEqual({plan.steps for plan in made}, {(0, 10, 20)})
    self.assertEqual(
        [plan.adapters for plan in made], [
            plan.kind == 'lora' for plan in made])
    self.assertAlmostEqual(made[2].learning_rate, 3e-4)
    self.assertEmpty(plans.make((), ('3e-5',), 20))

  @parameterized.parameters(
      (1, (0, 1)), (10, (0, 10)), (15, (0, 10, 15)),
      (100, (0, 10, 20, 50, 100)), (300, (0, 10, 20, 50, 100, 300)))
  def test_the_last_step_is_measured(self, most, want):
    self.assertEqual(plans.measured_steps(most), want)

  @parameterized.parameters(
      (('lora', 'pruning'), ('3e-5',), "--eval_attacks=lora,pruning has 'prun"),
      (('lora',), ('3e-5', 'fast'), "--eval_attack_rates=3e-5,fast has 'fast'"),
      (('lora',), ('-1',), "has '-1'; wanted learning rates above 0"),
      (('lora',), ('nan',), "has 'nan'"),
      (('lora',), ('3e-5', '0.00003'), 'repeats an attack'),
      (('lora', 'lora'), ('3e-5',), 'repeats an attack'))
  def test_refuses(self, kinds, rates, message):
    with self.assertRaises(ValueError) as caught:
      plans.make(kinds, rates, 10)
    self.assertIn(message, str(caught.exception))


if __name__ == '__main__':
  absltest.main()
