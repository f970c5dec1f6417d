"""Methods lie where their values belong, and their names do not collide."""

from xml.etree import ElementTree

from absl.testing import absltest

from mansu_jax.report.charts import frontier

_SPACE = '{http://www.w3.org/2000/svg}'


def _method(name, *points):
  return frontier.Method(name, 'c1', [
      frontier.Point(precision, x, y)
      for precision, (x, y) in zip(('fp', 'nf4', 'int4'), points)])


class FrontierTest(absltest.TestCase):

  def _draw(self, *methods):
    self.chart = ElementTree.fromstring(frontier.frontier(
        't', methods, x_label='lost', y_label='known'))

  def _names(self):
    return {e.text: (float(e.get('x')), float(e.get('y')))
            for e in self.chart.iter(_SPACE + 'text') if not e.get('class')}

  def _dots(self):
    """Tooltip -> x, y, and whether it is hollow."""
    out = {}
    for group in self.chart.iter(_SPACE + 'g'):
      dot = group.find(_SPACE + 'circle')
      out[group.find(_SPACE + 'title').text] = (
          float(dot.get('cx')), float(dot.get('cy')),
          'hollow' in dot.get('class').split())
    return out

  def test_points_and_lines(self):
    self._draw(_method('a & b', (0.0, 0.2), (0.0, 0.6), (0.1, 0.2)),
               _method('c', (0.3, 0.0)))
    dots = self._dots()
    self.assertEqual({*dots}, {
        'a & b, fp', 'a & b, nf4', 'a & b, int4', 'c, fp'})
    self.assertEqual([hollow for *_, hollow in dots.values()].count(True), 2)
    (x, y, _), (above_x, above_y, _), (right_x, right_y, _) = (
        dots[f'a & b, {p}'] for p in ('fp', 'nf4', 'int4'))
    self.assertEqual((x, y), (above_x, right_y))
    self.assertLess(above_y, y)
    self.assertAlmostEqual(3 * (right_x - x), dots['c, fp'][0] - x, delta=0.05)
    lines = [tuple(float(line.get(k)) for k in ('x1', 'y1', 'x2', 'y2'))
             for line in self.chart.iter(_SPACE + 'line')
             if line.get('class').startswith('line ')]
    self.assertEqual(
        lines, [(x, y, above_x, above_y), (x, y, right_x, right_y)])

  def test_names_do_not_collide_and_stay_inside(self):
    self._draw(*(_method(name, (0.5, 0.5)) for name in (
        'graddiff', 'npo', 'simnpo')), _method('m', (0.0, 0.0)))
    names, dots = self._names(), self._dots()
    ys = sorted(names[name][1] for name in ('graddiff', 'npo', 'simnpo'))
    self.assertGreaterEqual(min(b - a for a, b in zip(ys, ys[1:])), 14)
    width = float(self.chart.get('width'))
    for name in ('graddiff', 'npo', 'simnpo'):
      self.assertLess(names[name][0] + 6.5 * len(name), width)
    self.assertGreater(names['m'][0], dots['m, fp'][0])


if __name__ == '__main__':
  absltest.main()
