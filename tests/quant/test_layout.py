"""Transposition of leaves to torch order."""

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.quant import layout as layout_lib


class LayoutTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ('matrix', 'DF', 'F', 'D', (3, 4)),
      ('stacked', 'LFD', 'D', 'F', (2, 3, 4)),
      ('query', 'LDNH', 'NH', 'D', (2, 5, 3, 4)),
      ('output', 'LNHD', 'D', 'NH', (2, 3, 4, 5)),
      ('vector', 'D', '', 'D', (6,)))
  def test_rows_equal_loops(self, memory, out, inp, shape):
    leaf = np.arange(np.prod(shape)).reshape(shape)
    layout = layout_lib.BlockLayout(memory=memory, out=out, inp=inp)
    rows = np.asarray(layout_lib.to_rows(leaf, layout))
    size = dict(zip(memory, shape))
    number = lambda axes, at: np.ravel_multi_index(
        [at[a] for a in axes], [size[a] for a in axes]) if axes else 0
    for index in np.ndindex(*shape):
      at = dict(zip(memory, index))
      row = (*(at[a] for a in layout.batch), number(out, at), number(inp, at))
      self.assertEqual(rows[row], leaf[index])
    back = layout_lib.from_rows(rows, layout, shape)
    np.testing.assert_array_equal(back, leaf)

  def test_errors(self):
    with self.assertRaisesRegex(ValueError, 'repeats an axis'):
      layout_lib.BlockLayout(memory='DF', out='F', inp='F')
    with self.assertRaisesRegex(ValueError, r"names axes \['N'\]"):
      layout_lib.BlockLayout(memory='DF', out='N', inp='D')
    with self.assertRaisesRegex(ValueError, 'no column axis'):
      layout_lib.BlockLayout(memory='DF', out='F', inp='')
    layout = layout_lib.BlockLayout(memory='DF', out='F', inp='D')
    with self.assertRaisesRegex(ValueError, r'shape \(2, 3, 4\).*2 axes'):
      layout_lib.to_rows(np.zeros((2, 3, 4)), layout)
    with self.assertRaisesRegex(ValueError, r'wanted \(4, 3\)'):
      layout_lib.from_rows(np.zeros((3, 4)), layout, (3, 4))


if __name__ == '__main__':
  absltest.main()
