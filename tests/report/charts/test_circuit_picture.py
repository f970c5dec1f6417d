"""Marks stand at their nodes; their areas are the scores."""

import itertools
import re
from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from mansu_jax.report.charts import circuit_picture
from tests.report import attribution_records

_SPACE = '{http://www.w3.org/2000/svg}'


def _elements(svg, name, style=''):
  """Attributes by tooltip of the elements of a kind."""
  found = {}
  for element in ElementTree.fromstring(svg).iter(_SPACE + name):
    tooltip = element.find(_SPACE + 'title')
    if tooltip is not None and style in element.get('class'):
      found.setdefault(tooltip.text, []).append(element.attrib)
  return found


def _numbers(attributes, *names):
  return [float(attributes[name]) for name in names]


def _texts(svg):
  """Boxes (left, right, top, bottom) of all texts."""
  boxes = {}
  for text in ElementTree.fromstring(svg).iter(_SPACE + 'text'):
    x, y, wide = float(text.get('x')), float(text.get('y')), 6.5 * len(
        text.text)
    shift = {'middle': wide / 2, 'end': wide}.get(text.get('text-anchor'), 0)
    boxes[text.text, x, y] = (x - shift, x - shift + wide, y - 9, y + 2)
  return boxes


def _model(layers, heads, kv_heads=0, edges=False):
  """A picture of a model of any shape."""
  rng = np.random.default_rng(0)
  part = lambda width: {
      'score': rng.normal(size=(layers, width)).tolist(),
      'held': (rng.random((layers, width)) < 0.2).astype(int).tolist()}
  picture = {'heads': part(heads)}
  if kv_heads:
    picture['kv_heads'] = part(kv_heads)
  if not edges:
    counts = rng.integers(0, 900, layers)
    return picture | {'mlp': {
        'score': rng.normal(size=layers).tolist(),
        'size': (counts / 900).tolist(), 'neurons': counts.tolist(),
        'all': (counts / 900 + 0.5).tolist()}}
  last = layers - 1
  return picture | {'mlp': part(1), 'edges': [
      ['input', f'a{last}.h{heads - 1}<k>', 1.0],
      [f'a0.h{heads - 1}', f'm{last}', -0.5], ['m0', 'logits', 0.25]]}


class NodesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.picture = attribution_records.node_summary()
    self.svg = circuit_picture.draw('t', self.picture)

  def test_heads_stand_by_layer_and_number(self):
    marks = _elements(self.svg, 'circle', 'mark')
    at = lambda layer, head: _numbers(
        marks[f'layer {layer}, head {head}:'
              f' {self.picture["heads"]["score"][layer][head]:.3g}'][0],
        'cx', 'cy')
    (x0, y0), (x1, y1), (x2, y2) = at(0, 0), at(1, 0), at(1, 4)
    self.assertLess(x0, x1)
    self.assertEqual((y0, x1), (y1, x2))
    self.assertAlmostEqual(y2 - y1, 4 * (at(1, 1)[1] - y1), places=1)
    self.assertAlmostEqual(at(29, 0)[0] - x0, 29 * (x1 - x0), delta=0.5)

  def test_areas_are_the_scores_and_colours_their_signs(self):
    marks = _elements(self.svg, 'circle', 'mark')
    sizes = {}
    for tooltip, (attributes,) in marks.items():
      if 'head' in tooltip:
        score = float(tooltip.split(': ')[1].split(',')[0])
        radius, = _numbers(attributes, 'r')
        sizes[abs(score)] = radius**2
        self.assertIn('unlearned' if score > 0 else 'null',
                      attributes['class'])
        self.assertLess(float(attributes['fill-opacity']), 0.5)  # Not held.
    largest = max(sizes)
    for score, area in sizes.items():
      self.assertAlmostEqual(
          area / sizes[largest], score / largest, delta=0.03)

  def test_discs_are_the_circuits_part_of_their_rings(self):
    rings = _elements(self.svg, 'circle', 'ring')
    discs = _elements(self.svg, 'circle', 'mark')
    self.assertLen(rings, 30)
    tooltip = 'layer 10, MLP: 48 neurons in the circuit with |score| 4.8 of 7'
    area = [float(some[tooltip][0]['r'])**2 for some in (discs, rings)]
    self.assertAlmostEqual(area[0] / area[1], 4.8 / 7, delta=0.02)
    self.assertNotIn('layer 0, MLP: 0 neurons in the circuit with |score| 0'
                     ' of 1', discs)

  def test_bars_count_neurons(self):
    bars = _elements(self.svg, 'rect', 'bar')
    self.assertLen(bars, 22)
    tall = lambda layer, n: float(
        bars[f'layer {layer}: {n} neurons'][0]['height'])
    self.assertAlmostEqual(tall(2, 40) / tall(23, 61), 40 / 61, places=2)


class EdgesTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.picture = attribution_records.edge_summary()
    self.svg = circuit_picture.draw('t', self.picture)
    self.marks = _elements(self.svg, 'circle', 'mark')

  def _position(self, name):
    (mark,), = [some for tooltip, some in self.marks.items()
                if tooltip.startswith(f'{name}:')]
    return _numbers(mark, 'cx', 'cy')

  def test_edges_join_their_nodes(self):
    paths = _elements(self.svg, 'path', 'edge')
    self.assertLen(paths, 4)
    (path,) = paths['a3.h2 -> a7.h0<v>: 1']
    numbers = [float(x) for x in re.findall(r'[\d.]+', path['d'])]
    np.testing.assert_allclose(
        numbers[:2] + numbers[-2:],
        self._position('layer 3, head 2') + self._position('layer 7, head 0'),
        atol=0.1)
    (path,) = paths['input -> m0: 3']
    numbers = [float(x) for x in re.findall(r'[\d.]+', path['d'])]
    self.assertLess(numbers[0], numbers[-2])  # The input stands first.
    self.assertGreater(numbers[3], numbers[1])  # An arc below.

  def test_wider_and_darker_with_the_score(self):
    paths = _elements(self.svg, 'path', 'edge')
    drawn = [_numbers(path, 'stroke-width', 'stroke-opacity')
             for (path,) in paths.values()]
    self.assertEqual(drawn, sorted(drawn))  # The strongest come last.
    negative, = paths['m0 -> a3.h2<q>: -2']
    self.assertIn('null', negative['class'])

  def test_members_are_full_and_others_faint(self):
    opacity = {('in the circuit' in tooltip): float(mark['fill-opacity'])
               for tooltip, (mark,) in self.marks.items()}
    self.assertGreater(opacity[True], 0.8)
    self.assertLess(opacity[False], 0.4)


class ShapesTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, 1, 0, True), (3, 4, 2, False), (30, 9, 3, True), (30, 9, 0, False),
      (32, 32, 8, False), (32, 32, 0, True), (80, 64, 8, False),
      (80, 64, 0, True))
  def test_no_text_overlaps_and_all_is_inside(
      self, layers, heads, kv_heads, edges):
    svg = circuit_picture.draw(
        't', _model(layers, heads, kv_heads, edges))
    root = ElementTree.fromstring(svg)
    wide, tall = float(root.get('width')), float(root.get('height'))
    boxes = _texts(svg)
    for one, other in itertools.combinations(boxes.values(), 2):
      apart = (one[1] <= other[0] or other[1] <= one[0] or one[3] <= other[2]
               or other[3] <= one[2])
      self.assertTrue(apart, (one, other, boxes))
    for left, right, top, bottom in boxes.values():
      self.assertTrue(0 <= left and right <= wide and 0 <= top
                      and bottom <= tall, boxes)
    self.assertLess(tall, 760)
    for circle in root.iter(_SPACE + 'circle'):
      x, y, r = _numbers(circle.attrib, 'cx', 'cy', 'r')
      self.assertTrue(r <= x <= wide - r and r <= y <= tall - r)

  def test_many_heads_share_rows_and_sum_up(self):
    picture = _model(80, 64, edges=True)
    marks = _elements(circuit_picture.draw('t', picture), 'circle', 'mark')
    rows = {tooltip.split(': ')[0].split(', ')[1] for tooltip in marks}
    self.assertEqual(
        rows - {'MLP'}, {f'heads {i}-{i + 1}' for i in range(0, 64, 2)})
    score = sum(picture['heads']['score'][5][10:12])
    held = any(picture['heads']['held'][5][10:12])
    tooltip = f'layer 5, heads 10-11: {score:.3g}' + (
        ', in the circuit' if held else '')
    self.assertIn(tooltip, marks)

  def test_no_score_at_all(self):
    picture = _model(3, 2)
    picture['heads']['score'] = [[0.0] * 2] * 3
    picture['mlp'] |= {'all': [0.0] * 3, 'size': [0.0] * 3,
                       'neurons': [0] * 3}
    self.assertNotIn('nan', circuit_picture.draw('t', picture))


if __name__ == '__main__':
  absltest.main()
