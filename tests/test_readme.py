"""README.md's example of the transforms in another project runs and holds."""

import pathlib
import re

from absl.testing import absltest
import jax
import numpy as np

from mansu_jax import quant

_README = pathlib.Path(__file__).parents[1] / 'README.md'


class ReadmeTest(absltest.TestCase):

  def test_the_transforms_on_another_model(self):
    (code,) = re.findall(
        r'```python\n(.*?)```', _README.read_text(encoding='utf-8'), re.DOTALL)
    names = {}
    exec(code, names)  # pylint: disable=exec-used
    start = {'w': jax.random.normal(jax.random.key(0), (64, 128))}
    grid = quant.code_grid(start, 'nf4', names['layout'])
    changed = grid.changes(names['exact'])['w']
    moved = np.asarray(names['exact']['w'] != start['w'])
    np.testing.assert_array_equal(moved, changed)
    self.assertGreater(moved.sum(), 0)
    self.assertFalse(moved[:, 16:].any())


if __name__ == '__main__':
  absltest.main()
