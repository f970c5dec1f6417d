"""README.md's example of the transforms in another project runs and holds."""

import pathlib
import re

from absl.testing import absltest
import numpy as np

from mansu_jax import quant

_README = pathlib.Path(__file__).parents[1] / 'README.md'


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


if __name__ == '__main__':
  absltest.main()
