"""A disk that is full: one error of the system, and no file of the final name.

The disk is a limit of the system on the size of files, which each library that
writes meets in its own way.
"""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.models.io import edit_file
from mansu_jax.models.io import gguf_writer
from mansu_jax.models.io import hf_io
from mansu_jax.runtime import files
from tests import full_disk
from tests.models import tiny
from tests.models import tiny_tokenizers

_CONFIG = tiny.config()
_PARAMS = tiny.params(_CONFIG)
_OTHER = tiny.params(_CONFIG, seed=1)
_SMALL = tiny.config(vocab_size=8, d_model=4, d_ff=4, num_layers=1)
_WRITERS = {
    'weights': lambda path: hf_io.write(path, _CONFIG, _PARAMS, None),
    'shards': lambda path: hf_io.write(
        path, _CONFIG, _PARAMS, None, shard_gb=6e-5),
    'tokenizer': lambda path: hf_io.write(
        path, _SMALL, tiny.params(_SMALL), tiny_tokenizers.byte_level(
            [f'<{i}>' for i in range(500)], size=800)),
    'generation': lambda path: hf_io.write(
        path, _SMALL, tiny.params(_SMALL), None, generation={'a': 'x' * 10**5}),
    'gguf': lambda path: gguf_writer.write(path, _CONFIG, _PARAMS, None),
    'edit': lambda path: edit_file.write(
        path, _CONFIG, _PARAMS, _OTHER, 'float32'),
    'text': lambda path: files.write_text(path, 'x' * 10**5),
    'arrays': lambda path: files.write_npz(
        path, {'a': np.random.default_rng(0).normal(size=10**4)})}


class FullDiskTest(parameterized.TestCase):

  @parameterized.product(
      writer=list(_WRITERS), size=[1000, 5000, 20_000, 50_000])
  def test_no_file_is_left(self, writer, size):
    root = tiny.temp_dir(self)
    write = _WRITERS[writer]
    write(root / 'before')  # Compiles what it needs.
    old = root / 'before'
    was = old.stat().st_mtime_ns
    for path in (root / 'new', old):
      with self.assertRaises(OSError) as caught, full_disk.no_room(size):
        write(path)
      self.assertNotIn('\n', str(caught.exception))
    self.assertEqual([x.name for x in root.iterdir()], ['before'])
    self.assertEqual(old.stat().st_mtime_ns, was)


if __name__ == '__main__':
  absltest.main()
