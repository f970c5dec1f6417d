"""Shared base of tests of written reports."""

import pathlib
import tempfile

from absl.testing import parameterized

from mansu_jax.report import write
from tests.report import pages


def page(root: pathlib.Path) -> pages.Page:
  """The page of a written report."""
  return pages.Page((root / 'report.html').read_text(encoding='utf-8'))


class ReportTest(parameterized.TestCase):
  """Writes records to folders that are removed after the test."""

  def written(self, record) -> pathlib.Path:
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    write.write(record, root)
    return root

  def page(self, record) -> pages.Page:
    return page(self.written(record))
