"""Charts put marks where their values belong."""

from xml.etree import ElementTree

from absl.testing import absltest
import numpy as np

from mansu_jax.report.charts import svg

_SPACE = '{http://www.w3.org/2000/svg}'


def _find(chart: str, name: str, style: str) -> list[dict[str, str]]:
  root = ElementTree.fromstring(chart)
  return [e.attrib for e in root.iter(_SPACE + name)
          if style in e.get('class', '').split()]


def _texts(chart: str) -> dict[str, float]:
  """Text -> x of the whole chart."""
  root = ElementTree.fromstring(chart)
  return {''.join(e.itertext()): float(e.get('x'))
          for e in root.iter(_SPACE + 'text')}


class HeatMapTest(absltest.TestCase):

  def test_cells_are_as_dark_as_their_values(self):
    chart = svg.heat_map('t', [
        svg.Strip('one', [0.0, 0.5, 2.0]), svg.Strip('<two>', [1.0, 0.0, 0.0])],
        x_label='layer', name='{:g} kg'.format)
    cells = _find(chart, 'rect', 'bar')
    np.testing.assert_allclose(
        [float(c['fill-opacity']) for c in cells], [0, 0.25, 1, 0.5, 0, 0])
    xs, ys = ([float(c[axis]) for c in cells] for axis in 'xy')
    np.testing.assert_allclose(xs[:3], xs[3:])
    np.testing.assert_allclose(
        np.diff(xs[:3]), float(cells[0]['width']), atol=0.011)
    self.assertLen(set(ys[:3]), 1)
    self.assertGreater(ys[3], ys[0])
    texts = _texts(chart)
    self.assertContainsSubset(
        ['one', '<two>', 'largest: 2 kg', '0', '2'], texts)
    tooltips = [e.text for e in ElementTree.fromstring(chart).iter(
        _SPACE + 'title')]
    self.assertIn('<two>, layer 0: 1 kg', tooltips)

  def test_a_map_of_zeros_is_clear(self):
    chart = svg.heat_map(
        't', [svg.Strip('r', [0.0])], x_label='layer', name=str)
    cell, = _find(chart, 'rect', 'bar')
    self.assertEqual(float(cell['fill-opacity']), 0)


class DotChartTest(absltest.TestCase):

  def test_dots_lie_at_their_values(self):
    dots = [svg.Dot(0.0), svg.Dot(0.25, (0.0, 1.0), 'base', True),
            svg.Dot(1.0)]
    chart = svg.dot_chart('t', [svg.Row('r', dots)], label='x', limits=(0., 1.))
    xs = [float(d['cx']) for d in _find(chart, 'circle', 'dot')]
    self.assertAlmostEqual((xs[1] - xs[0]) / (xs[2] - xs[0]), 0.25, places=3)
    line, = _find(chart, 'line', 'span')
    self.assertEqual((float(line['x1']), float(line['x2'])), (xs[0], xs[2]))
    self.assertLen(_find(chart, 'circle', 'hollow'), 1)
    ticks = _texts(chart)
    self.assertEqual((ticks['0'], ticks['1']), (xs[0], xs[2]))

  def test_rules_and_range_cover_all(self):
    chart = svg.dot_chart(
        't', [svg.Row('r', [svg.Dot(0.5, (-0.2, None))])], label='x',
        rules=[svg.Rule(3.0, 'far')])
    rule, = _find(chart, 'line', 'rule')
    axis = _find(chart, 'line', 'axis')[-1]
    self.assertBetween(float(rule['x1']), float(axis['x1']), float(axis['x2']))
    self.assertEmpty(_find(chart, 'line', 'span'))  # No bound, no interval.

  def test_dot_chart_marks_rows_as_not_measured(self):
    chart = svg.dot_chart('t', [svg.Row('r', [svg.Dot(None)])], label='x')
    self.assertIn('not measured', _texts(chart))
    self.assertEmpty(_find(chart, 'circle', 'dot'))

  def test_equal_values_and_no_rows(self):
    same = svg.dot_chart('t', [svg.Row('r', [svg.Dot(2.0)])], label='x')
    self.assertLen(_find(same, 'circle', 'dot'), 1)
    ElementTree.fromstring(svg.dot_chart('t', [], label='x'))

  def test_text_is_escaped_and_long_labels_are_cut(self):
    label = '<&"' + 'x' * 60
    chart = svg.dot_chart(
        '<t>', [svg.Row(label, [svg.Dot(1.0)])], label='a & b')
    texts = ' '.join(_texts(chart))
    self.assertIn('a & b', texts)
    self.assertIn('…', texts)
    self.assertIn(label, texts)  # As the tooltip.
    root = ElementTree.fromstring(chart)
    self.assertEqual(root.find(_SPACE + 'title').text, '<t>')

  def test_joined_rows_take_one_line(self):
    row = svg.Row('r', [svg.Dot(0.2, style='base'), svg.Dot(0.6)])
    chart = svg.dot_chart('t', [row], label='x', joined=True)
    first, second = _find(chart, 'circle', 'dot')
    self.assertEqual(first['cy'], second['cy'])
    self.assertLen(_find(chart, 'line', 'span'), 1)


class BarChartTest(absltest.TestCase):

  def test_heights_are_proportional_and_bars_touch_the_axis(self):
    chart = svg.bar_chart(
        't', [svg.Bar(0, 1, 10.), svg.Bar(1, 2, 40., 'null'),
              svg.Bar(2, 3, 0.)], x_label='x', y_label='y',
        rules=[svg.Rule(1.0, 'edge')])
    small, large = _find(chart, 'rect', 'bar')
    self.assertAlmostEqual(
        float(large['height']) / float(small['height']), 4, places=2)
    floor = [float(b['y']) + float(b['height']) for b in (small, large)]
    self.assertAlmostEqual(*floor, places=1)
    rule, = _find(chart, 'line', 'rule')
    self.assertBetween(
        float(rule['x1']), float(small['x']) + float(small['width']),
        float(large['x']))

  def test_integers_only(self):
    bars = [svg.Bar(i - 0.4, i + 0.4, 5.0) for i in range(3)]
    names = [_texts(svg.bar_chart(
        't', bars, x_label='x', y_label='y', integers=integers))
             for integers in (True, False)]
    self.assertNotIn('0.5', names[0])
    self.assertIn('0.5', names[1])

  def test_no_bars(self):
    ElementTree.fromstring(svg.bar_chart('t', [], x_label='x', y_label='y'))


class LineChartTest(absltest.TestCase):

  def test_points_follow_the_values(self):
    series = [svg.Series('a', 'unlearned', [(1, 0.0), (2, 1.0), (4, 0.5)]),
              svg.Series('b', 'null', [(3, -1.0)])]
    chart = svg.line_chart('t', series, x_label='x', y_label='y')
    line = _find(chart, 'polyline', 'unlearned')[0]
    points = [tuple(map(float, p.split(','))) for p in line['points'].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    self.assertAlmostEqual((x1 - x0) / (x2 - x0), 1 / 3, places=2)
    self.assertAlmostEqual((y2 - y0) / (y1 - y0), 0.5, places=2)
    self.assertLess(y1, y0)  # Up is up.
    band = svg.Band('', 'null', [(1, -1.0, 0.0), (4, 0.0, 1.0)])
    chart = svg.line_chart(
        't', series[:1], x_label='x', y_label='y', bands=[band])
    (area,), (line,) = (_find(chart, name, style) for name, style in (
        ('polygon', 'band'), ('polyline', 'line')))
    corners, (_, top, middle) = (
        [[*map(float, p.split(','))] for p in some['points'].split()]
        for some in (area, line))
    self.assertAlmostEqual(corners[1][1], top[1], delta=0.2)  # Of y = 1.
    self.assertAlmostEqual(corners[0][1], corners[2][1], delta=0.2)  # y = 0.
    self.assertEqual(corners[1][0], middle[0])  # x = 4.

  def test_one_point_is_a_dot(self):
    series = [svg.Series('a', 'unlearned', [(1, 0.0), (4, 0.5)]),
              svg.Series('b', 'null', [(3, -1.0)])]
    chart = svg.line_chart('t', series, x_label='x', y_label='y')
    (_, y0), _ = (map(float, p.split(',')) for p in _find(
        chart, 'polyline', 'unlearned')[0]['points'].split())
    lone = [d for d in _find(chart, 'circle', 'null') if float(d['cy']) > y0]
    self.assertLen(lone, 1)  # One point is drawn as a dot.


if __name__ == '__main__':
  absltest.main()
