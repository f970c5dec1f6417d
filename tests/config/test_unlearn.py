"""The number of steps follows the size of the forget set."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import run as run_config


class StepsTest(parameterized.TestCase):

  @parameterized.parameters(
      # Sequences, options, steps.
      (10, {}, 100), (1600, {}, 100), (1601, {}, 101), (8000, {}, 500),
      (8000, {'forget_batch': 64}, 125), (8000, {'forget_pool': 3200}, 200),
      (100, {'forget_pool': 3200}, 100), (8000, {'steps': 7}, 7))
  def test_each_forget_sequence_is_trained_on_once(
      self, sequences, options, want):
    config = run_config.UnlearnConfig(fp_steps=1, **options)
    found = config.for_forget_set(sequences)
    self.assertEqual(found.steps, want)
    self.assertEqual(config.steps, options.get('steps', 0))

  def test_a_flag_cannot_leave_no_step_for_the_quantizer(self):
    run_config.UnlearnConfig(fp_steps=99)
    with self.assertRaisesRegex(ValueError, 'leaves no step for the quantizer'):
      run_config.UnlearnConfig(fp_steps=100)


if __name__ == '__main__':
  absltest.main()
