"""The examples in the docstrings of circuits, erasure and statistics."""

import doctest
import importlib
import pathlib

from absl.testing import absltest

_ROOT = pathlib.Path(__file__).parents[2]
_ROOMS = ('circuits', 'erasure', 'statistics')
_WITH_EXAMPLES = (
    'circuits.eap_ig', 'circuits.param_mask', 'circuits.select',
    'erasure.copy_back', 'erasure.divergence', 'statistics.accuracy',
    'statistics.intervals', 'statistics.power', 'statistics.verdict')


def _modules():
  for room in _ROOMS:
    for path in sorted((_ROOT / 'mansu_jax' / room).rglob('*.py')):
      yield '.'.join(path.relative_to(_ROOT).with_suffix('').parts)


class DocstringsTest(absltest.TestCase):

  def test_examples(self):
    found = set()
    for name in _modules():
      result = doctest.testmod(importlib.import_module(name))
      self.assertEqual(result.failed, 0, name)
      if result.attempted:
        found.add(name.removeprefix('mansu_jax.'))
    self.assertContainsSubset(_WITH_EXAMPLES, found)


if __name__ == '__main__':
  absltest.main()
