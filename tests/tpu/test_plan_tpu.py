"""Plans of large models by the TPU's compiler, with no TPU.

In an environment of its own (BUILD.md); skipped where libtpu is not installed.
"""

import pathlib

from absl.testing import absltest
import jax
import jax.numpy as jnp
import pytest

from mansu_jax.config import flags as flags_lib
from mansu_jax.flows import plan
from mansu_jax.planning import topology
from mansu_jax.quant import calibrated
from mansu_jax.report.sections import plan as plan_lines
from tests import optimized
from tests import runs
from tests import tiny_job
from tests.models import tiny

pytest.importorskip('libtpu')

_FLAGS = str(pathlib.Path(__file__).parents[2] / 'experiments/plan.flags')
_BRIEF = ('--circuit_first_layer=14', '--circuit_last_layer=25',
          '--unlearn_swapped_batch=14', '--unlearn_swapped_continuation=0',
          '--nounlearn_quantized_reference')


@pytest.mark.slow
@pytest.mark.long
class FitsTest(optimized.TestCase):  # Plans are for users' programs.

  def test_llama_31_8b_fits_a_v5e_8(self):
    found = plan.run(flags_lib.from_flagfile(
        _FLAGS,
        # Their programs take longer to compile than all others.
        '--eval_attacks=', '--eval_hidden_questions=0',
        '--eval_recall_questions=0', '--eval_cad_pairs=0',
        '--eval_generations=0', *_BRIEF))
    said = plan_lines.lines(found)
    self.assertTrue(found.fits, said)
    self.assertStartsWith(said[-1], 'fits: the largest stage is')
    base = found.stages[0].held['base']
    self.assertAlmostEqual(
        base * found.mesh['fsdp'] / (2 * found.weights), 1, places=2)
    # Gradients of all weights, in float32, would be twice the base.
    step = next(s for s in found.stages if s.name == 'unlearn')
    self.assertLess(max(call.bytes for call in step.calls), base)
    self.assertLen(found.notes, 1)  # It is one host.


class SmallTest(optimized.TestCase):

  def test_the_tiny_model_fits_a_chip(self):
    folder = tiny.temp_dir(self)
    found = plan.run(runs.parse(
        *tiny_job.make(folder / 'job', train=False), '--mode=plan',
        '--plan_topology=v5e:1x1', '--circuit_first_layer=0',
        '--circuit_last_layer=2', '--circuit_resamples=0', '--eval_attacks=',
        '--eval_generations=0', '--eval_recall_questions=0',
        '--eval_hidden_questions=0', '--eval_cad_pairs=0',
        '--unlearn_swapped_batch=0', '--nounlearn_quantized_reference'))
    self.assertTrue(found.fits)
    self.assertEqual(found.stages[0].held['base'], 4 * found.weights)
    self.assertStartsWith(
        plan_lines.lines(found)[-1], 'fits: the largest stage is')

  @pytest.mark.slow
  @pytest.mark.long
  def test_a_chip_is_too_small_for_8b(self):
    found = plan.run(flags_lib.from_flagfile(
        _FLAGS, '--plan_topology=v5e:1x1',
        # No more programs than it takes.
        '--edit_projection=none', '--nounlearn_quantizer_in_loop',
        '--eval_cad_pairs=0', '--eval_generations=0', '--eval_attacks=',
        '--eval_hidden_questions=0', '--eval_recall_questions=0', *_BRIEF))
    self.assertFalse(found.fits)
    said = plan_lines.lines(found)
    self.assertStartsWith(said[-1], 'does not fit: the largest')
    told = lambda stage: next(
        line for line in said if line.startswith(f'{stage} does not fit'))
    self.assertIn('Lower --attribution_batch', told('attribution'))
    self.assertEndsWith(
        told('evaluate'),
        '. Use more devices, or a larger --mesh_fsdp or --mesh_tensor.')

  def test_quantizers_are_calibrated_at_the_width_of_8b(self):
    devices, _ = topology.find('v5e:2x2')
    shape = lambda *sizes: jax.ShapeDtypeStruct(
        sizes, jnp.float32,
        sharding=jax.sharding.SingleDeviceSharding(devices[0]))
    moment = shape(14336, 14336)  # Of the hidden neurons.
    for scheme in calibrated.CALIBRATED.values():
      program = jax.jit(scheme.encode).trace(
          shape(4096, 14336), calibrated.InputStatistics(moment, shape(14336)))
      stats = program.lower().compile().memory_analysis()
      # Where blocks of a factor are written out, hundreds of MB.
      self.assertLess(stats.generated_code_size_in_bytes, 2**25, scheme.name)
      self.assertLess(
          stats.temp_size_in_bytes, 4 * 4 * 14336**2, scheme.name)


if __name__ == '__main__':
  absltest.main()
