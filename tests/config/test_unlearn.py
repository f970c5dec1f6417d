"""Options that follow the forget set and the layers that are trained."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import mode_checks
from mansu_jax.config import run as run_config
from mansu_jax.config import unlearn
from mansu_jax.models import layout
from tests import runs



class StepsTest(parameterized.TestCase):

  def test_edited_layers(self):
    edited = lambda *layers: run_config.UnlearnConfig(
        closed_form_layers=layers).edited_layers(7)
    self.assertEqual(edited(), (3,))
    self.assertEqual(edited('2', '6'), (2, 6))
    with self.assertRaisesRegex(ValueError, 'no layer 7; wanted .* 0 to 6'):
      edited('2', '7')

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


class ReadLayerTest(parameterized.TestCase):

  @parameterized.parameters(
      # First and last trained layer, layers, flag, layer.
      (0, 29, 30, None, 7), (13, 23, 30, None, 15), (5, 5, 12, None, 5),
      (13, 23, 30, 13, 13), (13, 23, 30, 29, 29))
  def test_rmu_reads_what_training_changes(
      self, first, last, layers, flag, want):
    config = run_config.UnlearnConfig(loss='rmu', rmu_layer=flag)
    found = config.for_layers(first, last + 1, layers)
    self.assertEqual(found.rmu_layer, want)

  @parameterized.parameters(12, 30)
  def test_a_layer_that_training_does_not_reach_is_refused(self, layer):
    config = run_config.UnlearnConfig(loss='rmu', rmu_layer=layer)
    with self.assertRaisesRegex(
        ValueError, f'--unlearn_rmu_layer={layer} is outside 13 to 29'):
      config.for_layers(13, 24, 30)

  def test_other_losses_read_none(self):
    config = run_config.UnlearnConfig()
    self.assertIs(config.for_layers(0, 30, 30), config)


class PartTest(parameterized.TestCase):

  @parameterized.parameters(
      (0, -1, (0, 12)), (3, 5, (3, 6)), (11, 11, (11, 12)), (2, -3, (2, 10)))
  def test_layers_are_counted_from_either_end(self, first, last, want):
    config = run_config.UnlearnConfig(first_layer=first, last_layer=last)
    self.assertEqual(config.trained_layers(12), want)

  @parameterized.parameters((5, 4), (12, -1), (-1, 5), (0, 12), (0, -13))
  def test_layers_that_a_model_lacks_are_refused(self, first, last):
    config = run_config.UnlearnConfig(first_layer=first, last_layer=last)
    with self.assertRaisesRegex(ValueError, 'hold no layers.*of 0 to 11'):
      config.trained_layers(12)

  def test_a_circuit_and_adapters_have_no_such_part(self):
    check = lambda *args: mode_checks.check_unread_flags(runs.parse(*args))
    for flag in ('--unlearn_matrices=down,up', '--unlearn_first_layer=2',
                 '--unlearn_last_layer=-2'):
      check('--method=npo', flag)
      for args in (), ('--method=npo', '--unlearn_lora_rank=2'):
        with self.assertRaisesRegex(
            ValueError, 'applies to --circuit_selection=all without'):
          check(*args, flag)

  def test_matrices_are_those_of_the_layers(self):
    self.assertEqual({name.split('/')[-1] for name in layout.MATRICES},
                     set(unlearn.MATRICES))

  def test_other_names_of_matrices_are_refused(self):
    config = run_config.UnlearnConfig(matrices=('down', 'w'))
    with self.assertRaisesRegex(ValueError, 'matrices=w is no matrix'):
      config.trained_layers(12)


class TaskVectorTest(parameterized.TestCase):
  baseline = (
      '--method=task_vector', '--circuit_selection=all', '--edit_floor=none',
      '--edit_projection=none', '--nounlearn_quantizer_in_loop')

  @parameterized.parameters(
      ((), 'contradicts --circuit_selection=.*Wanted --method=task_vector'),
      ((*baseline, '--unlearn_stop_forget=0.3'),
       'stop_forget=0.3 contradicts --unlearn_loss=task_vector'),
      ((*baseline, '--unlearn_patience=10'),
       'patience=10 contradicts --unlearn_loss=task_vector'))
  def test_it_forgets_after_training_and_edits_no_circuit(self, args, message):
    runs.parse('--unlearn_loss=task_vector', *self.baseline)
    with self.assertRaisesRegex(ValueError, message):
      runs.parse('--unlearn_loss=task_vector', *args)


if __name__ == '__main__':
  absltest.main()
