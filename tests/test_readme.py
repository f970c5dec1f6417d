"""README.md's example runs, and its figures are those of the stored run."""

import json
import pathlib
import re

from absl.testing import absltest
import numpy as np

from mansu_jax import quant
from mansu_jax.report.sections import summary

_ROOT = pathlib.Path(__file__).parents[1]
_README = _ROOT / 'README.md'
_RUN = _ROOT / 'experiments/results/quickstart/s0/record.json'
_ROWS = {'forget, near': 'forget_paraphrase', 'forget, far': 'forget_far',
         'retain, phr': 'retain', 'held-out': 'retain_heldout'}


class ReadmeTest(absltest.TestCase):

  def test_the_transforms_on_another_model(self):
    (code,) = re.findall(
        r'```python\n(.*?)```', _README.read_text(encoding='utf-8'), re.DOTALL)
    names = {}
    exec(code, names)  # pylint: disable=exec-used
    start, end = names['theta_0'], names['params']
    check = quant.check_edit(start, end, 'nf4', names['layout'])
    self.assertTrue(check.survives, check)
    moved = np.asarray(end['w'] != start['w'])
    self.assertGreater(moved.sum(), 0)
    self.assertFalse(moved[:, 16:].any())

  def test_the_printed_summary_is_of_the_stored_run(self):
    lines = summary.lines(json.loads(_RUN.read_text(encoding='utf-8')))
    self.assertIn('```\n' + '\n'.join(lines) + '\n```',
                  _README.read_text(encoding='utf-8'))

  def test_the_table_is_of_the_stored_run(self):
    accuracy = json.loads(_RUN.read_text(encoding='utf-8'))['accuracy']
    for start, split in _ROWS.items():
      (row,) = re.findall(rf'^\| {start}.*$', _README.read_text('utf-8'), re.M)
      got = accuracy[split]
      want = [f'{got["base"][p]["value"]:.2f}' for p in ('fp', 'nf4')]
      for measured in (got['unlearned'][p] for p in ('fp', 'nf4')):
        low, high = measured['interval']
        want.append(f'{measured["value"]:.2f} [{low:.2f}, {high:.2f}]')
      self.assertIn(f'({got["base"]["fp"]["n"]}', row)
      self.assertEqual([x.strip() for x in row.split('|')[2:-1]], want)


if __name__ == '__main__':
  absltest.main()
