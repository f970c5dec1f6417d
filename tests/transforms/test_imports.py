"""Importing the transformations loads jax, optax, NumPy and little else."""

import json
import subprocess
import sys

from absl.testing import absltest

_MOST_MODULES = 20
_PROGRAM = """
import json, sys
import jax, numpy, optax
def load(fn):
  before = set(sys.modules)
  fn()
  return sorted(set(sys.modules) - before)
def import_transforms():
  import mansu_jax.transforms
def use_grids():
  from mansu_jax import quant
  quant.code_grid, quant.fake_quantize, quant.check_edit, quant.survival
  quant.packing, quant.gguf_bytes, quant.CALIBRATED
print(json.dumps([load(import_transforms), load(use_grids)]))
"""


class ImportTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    done = subprocess.run(
        [sys.executable, '-c', _PROGRAM], capture_output=True, text=True,
        check=True)
    cls.transforms, cls.quant = json.loads(done.stdout)

  def test_transforms_load_few_modules(self):
    for name in self.transforms:  # No absl, no scipy, no configuration.
      self.assertRegex(name, r'mansu_jax(\.(transforms|quant)(\.\w+)?)?$')
    self.assertLessEqual(len(self.transforms), _MOST_MODULES)

  def test_quantizers_load_no_configuration_flags_or_processes(self):
    ours = {name for name in self.quant if name.startswith('mansu_jax')}
    outside = {
        name for name in ours if not name.startswith('mansu_jax.quant')}
    self.assertEqual(outside, {'mansu_jax.runtime', 'mansu_jax.runtime.memory'})
    others = {name.split('.')[0] for name in self.quant} - {'mansu_jax'}
    self.assertContainsSubset(others, {'jax'})


if __name__ == '__main__':
  absltest.main()
