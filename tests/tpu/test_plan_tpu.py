"""Plans of large models by the TPU's compiler, with no TPU.

In an environment of its own (BUILD.md); skipped where libtpu is not installed.
"""

import pathlib

from absl.testing import absltest
import pytest

from mansu_jax import plan
from mansu_jax import run_flags

pytest.importorskip('libtpu')

_FLAGS = pathlib.Path(__file__).parents[2] / 'experiments'


class PlanTest(absltest.TestCase):

  def test_llama_31_8b_fits_a_v5e_8(self):
    found = plan.run(run_flags.from_flagfile(
        str(_FLAGS / 'llama31_8b_plan.flags')))
    said = plan.lines(found)
    self.assertTrue(found.fits, said)
    self.assertStartsWith(said[-1], 'fits: the largest stage is')
    base = found.stages[0].held['base']
    self.assertAlmostEqual(
        base * found.mesh['fsdp'] / (2 * found.weights), 1, places=2)
    # Gradients of all weights, in float32, would be twice the base.
    step = next(s for s in found.stages if s.name == 'unlearn')
    self.assertLess(max(call.bytes for call in step.calls), base)
    self.assertLen(found.notes, 1)  # It is one host.

  def test_a_chip_is_too_small_for_8b(self):
    found = plan.run(run_flags.from_flagfile(
        str(_FLAGS / 'llama31_8b_plan.flags'), '--plan_topology=v5e:1x1'))
    self.assertFalse(found.fits)
    said = plan.lines(found)
    self.assertStartsWith(said[-1], 'does not fit: the largest')
    told = lambda stage: next(
        line for line in said if line.startswith(f'{stage} does not fit'))
    self.assertIn('Lower --attribution_batch', told('attribution'))
    self.assertEndsWith(
        told('evaluate'),
        '. Take more devices, or a larger --mesh_fsdp or --mesh_tensor.')


if __name__ == '__main__':
  absltest.main()
