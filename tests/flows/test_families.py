"""The job on a tiny model of each family, and with the default losses.

The other tests run it on a Llama with simpler losses.
"""

import json

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from mansu_jax import tree_paths
from mansu_jax.config import run as run_config
from mansu_jax.models import layout
from mansu_jax.models.io import edit_file
from mansu_jax.models.io import loading
from tests import families
from tests import runs
from tests import tiny_job
from tests.models import tiny


class FamiliesTest(parameterized.TestCase):

  @parameterized.named_parameters(*families.named(
      *(family for family in families.TRAINED if family != 'llama')))
  @pytest.mark.slow
  def test_runs_end_to_end(self, family):
    folder = tiny.temp_dir(self)
    flags = tiny_job.make(folder / 'job', family=family)
    file = folder / 'job' / 'model' / 'config.json'
    file.write_text(json.dumps(
        json.loads(file.read_text()) | {'initializer_range': 0.5}))
    record = runs.run(
        folder / 'run', *flags, '--nounlearn_quantized_reference',
        # Scores of each family are tested in tests/circuits.
        '--eval_cad_pairs=0', '--circuit_resamples=0')
    accuracy = record['accuracy']['forget']
    # 60 steps of neurons make the answers unlikely in each family (against the
    # quantized base, in Gemma 3 a little less), and the choice among them wrong
    # in some only; parity is tested elsewhere.
    nll = record['history']['forget_nll']
    self.assertGreater(np.mean(nll[-5:]), nll[0] + 2)
    for p in ('fp', 'nf4'):
      self.assertGreater(accuracy['base'][p]['value'], 0.7)
      self.assertLess(
          accuracy['unlearned'][p]['value'], accuracy['base'][p]['value'])
    self.assertGreater(record['survival']['nf4']['moved'], 0)
    model = loading.load(folder / 'run' / 'model')
    base = loading.load(folder / 'job' / 'model')
    self.assertEqual(model.config, base.config)
    self.assertEqual(model.config.family, family)
    before, after = (
        tree_paths.flatten(m.params) for m in (base, model))
    for name in before:
      if name not in layout.MATRICES:  # Norms and biases are never edited.
        np.testing.assert_array_equal(before[name], after[name], name)
    self._check_files(folder / 'job' / 'model', folder / 'run')

  def _check_files(self, base, run):
    """What no edit moves is that of the input, byte for byte."""
    moved = edit_file.read(run / 'edit.safetensors').moved
    before, after = (
        safetensors_numpy.load_file(path / 'model.safetensors')
        for path in (base, run / 'model'))
    self.assertEqual(before.keys(), after.keys())
    for name, values in before.items():
      self.assertEqual(
          values.tobytes() == after[name].tobytes(), name not in moved, name)
    self.assertNotEmpty(moved)
    for name in ('tokenizer.json', 'tokenizer_config.json'):
      self.assertEqual((run / 'model' / name).read_bytes(),
                       (base / name).read_bytes(), name)
    before, after = (json.loads((path / 'config.json').read_text())
                     for path in (base, run / 'model'))
    self.assertEqual(before, after)
    self.assertEqual(after['initializer_range'], 0.5)


class DefaultsTest(absltest.TestCase):

  @pytest.mark.slow
  @pytest.mark.long
  def test_the_default_losses_need_no_wrong_choices(self):
    folder, options = tiny.temp_dir(self), run_config.UnlearnConfig()
    steps = (
        *(f'--unlearn_{name}={getattr(options, name)}'
          for name in tiny_job.LOOP), '--unlearn_learning_rate=1e-2',
        '--unlearn_steps=40', '--unlearn_swapped_batch=8',
        '--attribution_steps=1', '--circuit_random_circuits=1',
        '--circuit_resamples=0', '--eval_cad_pairs=0', '--eval_generations=0')
    flags = tiny_job.make(folder / 'job')
    record = runs.run(folder / 'run', *flags, *steps)
    right = lambda split, model: (
        record['accuracy'][split][model]['fp']['value'])
    self.assertEqual(right('forget_far', 'base'), 1.0)
    self.assertLess(right('forget_far', 'unlearned'), 0.5)
    self.assertGreater(right('retain', 'unlearned'), 0.9)
    for role in ('forget', 'retain'):
      tiny_job.write_jsonl(folder / 'job' / f'{role}.jsonl', [
          {k: v for k, v in line.items()
           if k != 'choices' or line['use'] != 'train'}
          for line in tiny_job.questions()[role]])
    other = runs.run(folder / 'no_choices', *flags, *steps)
    self.assertEqual(*(
        runs.sha256(folder / name / 'model' / 'model.safetensors')
        for name in ('run', 'no_choices')))
    self.assertNotIn('forget', other['accuracy'])
    # The answer competes with every token.
    *_, last = other['history']['probe']
    self.assertLess(last, 0.5)


if __name__ == '__main__':
  absltest.main()
