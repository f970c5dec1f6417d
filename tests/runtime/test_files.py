"""Files are written completely or not at all."""

import json
import pathlib
import tempfile

from absl.testing import absltest

from mansu_jax.runtime import files


class FilesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    made = tempfile.TemporaryDirectory()
    self.addCleanup(made.cleanup)
    self.path = pathlib.Path(made.name) / 'record.json'

  def test_json_reads_back(self):
    files.write_json(self.path, {'a': [1, None, 'é']})
    self.assertEqual(json.loads(self.path.read_text()), {'a': [1, None, 'é']})

  def test_nan_is_refused_and_the_old_file_kept(self):
    files.write_json(self.path, {'a': 1})
    with self.assertRaises(ValueError):
      files.write_json(self.path, {'a': float('nan')})
    self.assertEqual(json.loads(self.path.read_text()), {'a': 1})
    self.assertLen(list(self.path.parent.iterdir()), 1)


if __name__ == '__main__':
  absltest.main()
