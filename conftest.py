"""Puts the repository on the path; tests run on CPU unless told otherwise."""

import os

from absl import flags

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# pytest parses no absl flags, and absltest asks them for its folders.
flags.FLAGS.mark_as_parsed()
