"""The relearning attack: its records and its command line."""

import contextlib
import io
import json

from absl import flags
from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import pytest

from mansu_jax import tree_paths
from mansu_jax.deployment import command_line
from mansu_jax.deployment import relearn
from mansu_jax.deployment import relearning_attack
from mansu_jax.models.io import hf_io
from tests import tiny_job
from tests.models import tiny

_STEPS = [0, 2, 5, 10, 20]


def _main(*args):
  """Exit status and stderr of the command line."""
  values = flags.FlagValues()
  relearn.define(values)
  rest = values(['relearn', *args])
  errors = io.StringIO()
  with contextlib.redirect_stderr(errors), (
      contextlib.redirect_stdout(io.StringIO())):
    status = relearn.main(rest, values)
  return status, errors.getvalue()


class TaughtFactsTest(absltest.TestCase):

  def test_choose_taught_facts_takes_half_in_any_order(self):
    facts = [f'fact/{i}' for i in range(9)]
    chosen = relearning_attack.choose_taught_facts(facts, 0)
    self.assertLen(chosen, 4)
    self.assertContainsSubset(chosen, facts)
    self.assertEqual(
        relearning_attack.choose_taught_facts(facts[::-1] * 2, 0), chosen)
    self.assertNotEqual(
        relearning_attack.choose_taught_facts(facts, 1), chosen)


class FlagsTest(parameterized.TestCase):

  @parameterized.parameters(
      ([], 'Wanted either --workdir, or --run'),
      (['--workdir=a', '--run=b'], 'Wanted either --workdir, or --run'),
      (['--run=b'], 'wanted all three'),
      (['--run=b', '--models=c', '--out=d'], "--models has 'c'; wanted NAME="),
      (['--run=b', '--models=c=d,c=e', '--out=d'], "--models has 'c=e'"),
      (['--workdir=/nowhere'], '/nowhere/flags.txt is not a file'),
      (['extra'], 'Positional arguments'))
  def test_bad_flags(self, args, message):
    status, errors = _main(*args)
    self.assertEqual(status, command_line.USER_ERROR)
    self.assertStartsWith(errors, 'mansu_jax.deployment.relearn: ')
    self.assertIn(message, errors)

  def test_an_audit_is_refused(self):
    folder = tiny.temp_dir(self)
    (folder / 'model').mkdir()
    (folder / 'flags.txt').write_text(
        '--mode=audit\n--model=a\n--base=b\n--data_forget=f\n')
    status, errors = _main(f'--workdir={folder}')
    self.assertEqual(status, command_line.USER_ERROR)
    self.assertIn('--mode=audit; wanted a run of --mode=unlearn', errors)

  def test_too_few_facts_are_refused(self):
    folder = tiny.temp_dir(self)
    job = tiny_job.make(folder, train=False)
    first = [q for q in tiny_job.questions()['forget']
             if q['fact'] == 'capital/alvaria']
    tiny_job.write_jsonl(folder / 'forget.jsonl', first)
    (folder / 'flags.txt').write_text('\n'.join(job))
    status, errors = _main(f'--workdir={folder}')
    self.assertEqual(status, command_line.USER_ERROR)
    self.assertIn('2 far questions on the forget set, 0 ask a fact', errors)


@pytest.mark.slow
class CommandLineTest(absltest.TestCase):

  def test_records_of_a_model_and_its_control(self):
    folder = tiny.temp_dir(self)
    (folder / 'job.flags').write_text('\n'.join(tiny_job.make(folder / 'job')))
    config, params, tokenizer = tiny_job.base()
    # Without the first layer's MLP, the model gives fewer right answers.
    damaged = tree_paths.map_named(
        lambda name, x: x.at[0].set(0) if name == 'layers/mlp/down' else x,
        jax.tree.map(jnp.asarray, params))
    hf_io.write(folder / 'damaged', config, damaged, tokenizer)
    args = (f'--run={folder}/job.flags', f'--models=damaged={folder}/damaged',
            f'--out={folder}/out', '--controls', '--learning_rate=1e-3')
    self.assertEqual(_main(*args), (0, ''))
    paths = sorted((folder / 'out' / 'relearning').iterdir())
    self.assertEqual([p.name for p in paths],
                     ['damaged_control_s0.json', 'damaged_s0.json'])
    for path in paths:
      record = json.loads(path.read_text())
      self.assertEqual(list(record), [
          'arm', 'learning_rate', 'cad', 'readability', 'relearning'])
      self.assertEqual(record['arm'] + '_s0.json', path.name)
      self.assertBetween(record['readability']['value'], -1, 2)
      steps = record['relearning']
      self.assertEqual([x['step'] for x in steps], _STEPS)
      for found in steps:  # Two far questions on each of twelve capitals.
        self.assertLen(found['right'], 24)
        self.assertAlmostEqual(
            found['right'].count('1') / 24,
            (found['taught'] + found['not_taught']) / 2)
      self.assertGreater(steps[-1]['taught'], steps[0]['taught'])
    before = [path.stat().st_mtime_ns for path in paths]
    self.assertEqual(_main(*args), (0, ''))  # Existing records stay.
    self.assertEqual([path.stat().st_mtime_ns for path in paths], before)
    status, errors = _main(*args, '--learning_rate=2e-3')
    self.assertEqual(status, command_line.USER_ERROR)
    self.assertIn('a record with learning rate 0.001; wanted 0.002', errors)


if __name__ == '__main__':
  absltest.main()
