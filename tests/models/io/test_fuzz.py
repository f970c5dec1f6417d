"""Damaged files are refused in one line: some thousand mutations of each kind.

`fuzz` says how to run more.
"""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import pytest

from mansu_jax.models.io import loading
from tests.models import tiny
from tests.models.io import fuzz


# Mutations that a run of 10^6 found: a signaling NaN in a norm with an offset.
_FOUND = {'gguf': (207043, 284638), 'hf': ()}


class FuzzTest(parameterized.TestCase):

  @parameterized.parameters(*fuzz.KINDS)
  @pytest.mark.medium
  def test_mutations(self, kind):
    path = tiny.temp_dir(self) / f'x.{kind}'
    for base in fuzz.KINDS[kind].bases():  # What they import takes a second.
      fuzz.KINDS[kind].write(base.data, path)
      fuzz.KINDS[kind].load(path)
    outcomes = []
    for index in (*_FOUND[kind], *range(400)):
      outcome, why = fuzz.try_one(kind, path, index)
      self.assertNotEqual(outcome, 'failed', why)
      outcomes.append(outcome)
    self.assertGreater(outcomes.count('loaded'), 10)
    self.assertGreater(outcomes.count('refused'), 200)

  def test_judge_fails_on_unexpected_errors_and_long_messages(self):
    for error, want in (
        (KeyError('x'), "KeyError: 'x'"), (ValueError('a\nb'), r"'a\nb'"),
        (UnicodeError('x'), "UnicodeError('x')"),
        (MemoryError(), 'MemoryError: '), (RuntimeWarning('w'), 'Warning: w')):
      for kind in fuzz.KINDS:
        with absltest.mock.patch.object(loading, 'find', side_effect=error):
          outcome, why = fuzz.judge(kind, pathlib.Path('x'))
        self.assertEqual(outcome, 'failed')
        self.assertIn(want, why)

  @parameterized.parameters(('gguf', 20_000), ('hf', 5_000))
  @pytest.mark.slow
  def test_many_mutations_within_a_second_and_100_mb(self, kind, count):
    counts, failures = fuzz.run(kind, first=0, count=count)
    self.assertEmpty(failures)
    self.assertEqual(sum(counts.values()), count)
    self.assertGreater(counts['loaded'], count // 100)


if __name__ == '__main__':
  absltest.main()
