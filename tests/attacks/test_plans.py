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

  def test_shares_are_of_attacks_that_train_on_facts(self):
    made = plans.make(
        ('lora', 'benign', 'few_shot'), ('3e-5', '1e-4'), 20, ('0.05', '0.5'))
    names = [plan.name for plan in made]
    self.assertEqual(names, [
        'lora_3e-4_share_0.05', 'lora_3e-4', 'lora_1e-3_share_0.05',
        'lora_1e-3', 'benign_3e-5', 'benign_1e-4', 'few_shot'])
    self.assertEqual([plan.share for plan in made[:2]], [0.05, 0.5])
    self.assertEqual(
        [name for name in names if plans.teaches_half(name)],
        ['lora_3e-4', 'lora_1e-3'])
    self.assertEqual([plan.kind for plan in made], [*map(plans.kind_of, names)])
    self.assertEqual(made[-1].steps, (0, 1, 5))
    self.assertEqual([plan.trains for plan in made], [True] * 6 + [False])
    self.assertEqual((plans.unit('few_shot'), plans.unit('lora_1e-3')),
                     ('example', 'step'))

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

  @parameterized.parameters(
      (('0.6',), "--eval_attack_shares=0.6 has '0.6'; wanted shares of the"),
      (('0',), "has '0'"), (('half',), "has 'half'"),
      (('0.5', '.5'), '--eval_attack_shares=0.5,.5 repeats an attack'))
  def test_refuses_shares(self, shares, message):
    with self.assertRaises(ValueError) as caught:
      plans.make(('lora',), ('3e-5',), 10, shares)
    self.assertIn(message, str(caught.exception))


if __name__ == '__main__':
  absltest.main()
