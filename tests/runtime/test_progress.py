"""Progress bars on terminals, and token counts."""

import io
import sys
from unittest import mock

from absl.testing import absltest

from mansu_jax.runtime import progress


class _Terminal(io.StringIO):

  def isatty(self):
    return True


class ProgressTest(absltest.TestCase):

  def test_a_bar_on_a_terminal(self):
    with mock.patch.object(sys, 'stderr', _Terminal()) as terminal:
      self.assertEqual(list(progress.track(range(3), 'steps')), [0, 1, 2])
      said = terminal.getvalue()
    self.assertIn('steps', said)
    self.assertIn('/3', said)
    self.assertEndsWith(said, '\r')  # The bar is cleared.

  def test_no_bar_in_a_log(self):
    with mock.patch.object(sys, 'stderr', io.StringIO()) as log:
      found = list(progress.track(iter('ab'), 'x', total=2))
      self.assertEqual(found, ['a', 'b'])
      self.assertEqual(log.getvalue(), '')

  def test_a_resumed_loop(self):
    with mock.patch.object(sys, 'stderr', _Terminal()) as terminal:
      list(progress.track(range(7, 9), 'steps', total=9, start=7))
      self.assertIn('7/9', terminal.getvalue())

  def test_lines_of_the_log_clear_the_bar(self):
    above = progress.ClearBarsFilter()
    self.assertTrue(above.filter(None))
    with mock.patch.object(sys, 'stderr', _Terminal()) as terminal:
      for _ in progress.track(range(2), 'steps'):
        before = len(terminal.getvalue())
        self.assertTrue(above.filter(None))
        self.assertIn('\r', terminal.getvalue()[before:])

  def test_tokens_add_up(self):
    before = progress.tokens()
    progress.count_tokens(3)
    progress.count_tokens(4)
    self.assertEqual(progress.tokens() - before, 7)


if __name__ == '__main__':
  absltest.main()
