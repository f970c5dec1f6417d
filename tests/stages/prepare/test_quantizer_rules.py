"""Which quantizers fit together, fit a model, and guarantee survival."""

import dataclasses

from absl.testing import absltest

from mansu_jax.models.io import loading
from mansu_jax.stages.prepare import quantizer_rules
from tests.models import tiny

_ALL = ('nf4', 'q4_0', 'q4_k', 'gptq_g128')


class QuantizerRulesTest(absltest.TestCase):

  def test_a_fixed_grid_guarantees_survival_with_a_floor(self):
    self.assertEqual(quantizer_rules.guaranteed(_ALL, 'hold'), ('nf4', 'q4_0'))
    self.assertEmpty(quantizer_rules.guaranteed(_ALL, 'none'))

  def test_an_audit_takes_any_first(self):
    quantizer_rules.check(('q4_k', 'nf4'), edits=False)
    with self.assertRaisesRegex(ValueError, 'starts with q4_k'):
      quantizer_rules.check(('q4_k', 'nf4'), edits=True)

  def test_matrices_that_cannot_be_cut_are_refused_before_weights(self):
    _, shapes, _ = loading.find_config('shipped:llama32_1b')
    shapes = dataclasses.replace(shapes, d_model=48)
    with self.assertRaisesRegex(
        ValueError, r"--quant_schemes has q4_0: .*'layers/attn/.'.*have 48"):
      quantizer_rules.check_shapes(_ALL, shapes)
    quantizer_rules.check_shapes(('nf4', 'gptq_g128'), shapes)

  def test_blocks_across_matrices_of_one_tensor_are_refused(self):
    shapes = tiny.config(
        family='phi3', d_model=64, num_heads=2, num_kv_heads=1, d_head=6)
    quantizer_rules.check_shapes(('nf4', 'int8', 'nf4_b128'), shapes)
    for name, message in (
        ('nf4_b256', 'blocks across all matrices in .*layers.0.*qkv_proj'),
        ('fp4_dq', 'quantizes the scales of all matrices in')):
      with self.assertRaisesRegex(ValueError, message):
        quantizer_rules.check_shapes((name,), shapes)


if __name__ == '__main__':
  absltest.main()
