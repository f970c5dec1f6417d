"""Lets absltest make temporary files under pytest, which parses no flags."""

from absl import flags

flags.FLAGS.mark_as_parsed()
