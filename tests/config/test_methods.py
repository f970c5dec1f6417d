"""A method gives the flags that it needs, and refuses others."""

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.config import run as config_lib
from tests import runs


class MethodTest(parameterized.TestCase):

  def test_a_method_gives_the_flags_that_it_needs(self):
    got = runs.parse('--method=gu')
    self.assertEqual(
        (got.circuit.selection, got.edit.floor, got.edit.projection,
         got.unlearn.loss, got.unlearn.orthogonal,
         got.unlearn.quantizer_in_loop),
        ('all', 'none', 'none', 'simnpo', True, False))
    saf = runs.parse('--mode=plan', '--method=saf', '--unlearn_sharpness=0.1')
    self.assertTrue(saf.unlearn.quantizer_in_loop)
    circuit = runs.parse('--method=retain_only')
    self.assertEqual(circuit.unlearn.loss, 'none')
    self.assertEqual(circuit.edit, config_lib.RunConfig().edit)
    self.assertEqual(runs.parse('--method=mansu'), config_lib.RunConfig())

  def test_what_all_methods_share_is_of_no_method(self):
    shared = runs.parse('--mode=compare', '--method=npo')
    self.assertEqual(
        shared, config_lib.RunConfig(mode='compare', method='npo'))

  @parameterized.parameters(
      (['--method=graddiff', '--circuit_selection=attributed'],
       'graddiff changes every weight.*contradicts.*--circuit_selection=attr'),
      (['--method=graddiff', '--edit_floor=hold'],
       'graddiff has no floor.*--edit_floor=none'),
      (['--method=graddiff', '--edit_projection=fisher'],
       'graddiff projects nothing.*--edit_projection=none'),
      (['--method=graddiff', '--unlearn_loss=prior'],
       'contradicts --unlearn_loss=prior; wanted --unlearn_loss=ascent'),
      (['--method=graddiff', '--unlearn_quantizer_in_loop'],
       'wanted --nounlearn_quantizer_in_loop'),
      (['--circuit_selection=all'], 'is for baselines.*--method=graddiff'),
      (['--circuit_selection=all', '--mode=attribute'], 'is for baselines'),
      (['--method=lunar', '--unlearn_loss=npo'],
       'lunar has no forget loss.*wanted --unlearn_loss=none'),
      (['--method=group_mean', '--edit_floor=hold'], 'group_mean has no floor'),
      (['--method=group_mean', '--circuit_selection=random'],
       'edits down projections.*wanted --circuit_selection=all'),
      (['--method=lunar', '--unlearn_closed_form_layers=5,4'],
       'layers=5,4 are no layers in ascending order'),
      (['--method=lunar', '--unlearn_closed_form_layers=-1'], 'no layers in'),
      (['--method=lunar', '--unlearn_closed_form_ridge=0'],
       'ridge=0.0 must be positive'),
      (['--method=npo', '--mode=plan', '--edit_floor=hold'],
       'npo has no floor'),
      (['--method=npo', '--unlearn_loss=simnpo'], 'wanted --unlearn_loss=npo'),
      (['--method=retain_only', '--unlearn_loss=npo'],
       'has no forget term.*--unlearn_loss=none'),
      (['--method=retain_only', '--circuit_selection=all', '--edit_floor=hold'],
       'retain_only with --circuit_selection=all has no floor'),
      (['--method=retain_only', '--circuit_selection=all',
        '--unlearn_quantizer_in_loop'], 'wanted --nounlearn_quantizer_in_loop'),
      (['--unlearn_loss=none'], 'contradicts --method=mansu, which forgets'),
      (['--method=npo', '--unlearn_loss=none'], 'wanted --unlearn_loss=npo'),
      (['--unlearn_lora_rank=8'], 'rank=8 trains adapters of every layer'),
      (['--method=retain_only', '--unlearn_lora_rank=8'],
       'trains the circuit; wanted'),
      (['--unlearn_lora_rank=-1'], '--unlearn_lora_rank=-1 must be at least 0'),
      (['--method=npo', '--unlearn_lora_alpha=0'],
       '--unlearn_lora_alpha=0.0 must be'),
      (['--unlearn_weights_dtype=bfloat16'], 'circuit is trained in float32'),
      (['--method=npo', '--unlearn_weights_dtype=bfloat16',
        '--unlearn_lora_rank=2'], 'adapters are trained in float32. Leave one'))
  def test_flags_that_contradict_a_method_are_refused(self, args, message):
    with self.assertRaisesRegex(ValueError, message):
      runs.parse(*args)


if __name__ == '__main__':
  absltest.main()
