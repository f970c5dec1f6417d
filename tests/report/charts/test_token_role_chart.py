"""Marks stand by layer and token role; their areas are the scores."""

from xml.etree import ElementTree

from absl.testing import absltest
from absl.testing import parameterized

from mansu_jax.circuits import eap_ig
from mansu_jax.report.charts import token_role_chart

_SVG = '{http://www.w3.org/2000/svg}'


def _token_roles(layers):
  score = lambda part, layer, i: (
      (-1) ** (layer + i) * (part + layer + i + 1) / 10)
  return {'names': list(eap_ig.TOKEN_ROLES)} | {
      name: [[score(part, layer, i) for i in range(3)]
             for layer in range(layers)]
      for part, name in enumerate(('attention', 'mlp'))}


class TokenRoleChartTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 30, 80)
  def test_a_mark_for_each_layer_part_and_role(self, layers):
    token_roles = _token_roles(layers)
    root = ElementTree.fromstring(token_role_chart.draw('t', token_roles))
    marks = [m for m in root.iter(f'{_SVG}circle')
             if m.get('class', '').startswith('mark')]
    self.assertLen(marks, 6 * layers)
    width = float(root.get('width'))
    rows = {}
    for mark in marks:
      tooltip = mark.find(f'{_SVG}title').text
      layer = int(tooltip.split(',')[0].removeprefix('layer '))
      rows.setdefault(tooltip.split(', ', 1)[1].split(':')[0], {})[layer] = mark
      self.assertBetween(float(mark.get('cx')), 0, width)
    self.assertLen(rows, 6)
    heights = {name: {float(m.get('cy')) for m in of.values()}
               for name, of in rows.items()}
    self.assertTrue(all(len(some) == 1 for some in heights.values()))
    self.assertLen(set().union(*heights.values()), 6)

  def test_areas_are_scores_and_colours_signs(self):
    token_roles = _token_roles(4)
    root = ElementTree.fromstring(token_role_chart.draw('t', token_roles))
    area = {}
    for mark in root.iter(f'{_SVG}circle'):
      if mark.get('class', '').startswith('mark'):
        score = float(mark.find(f'{_SVG}title').text.rsplit(' ', 1)[1])
        area[abs(score)] = float(mark.get('r')) ** 2
        self.assertIn('unlearned' if score >= 0 else 'null', mark.get('class'))
    for score, size in area.items():
      self.assertAlmostEqual(size / area[0.7], score / 0.7, delta=0.02)

  def test_zeros_have_no_mark(self):
    token_roles = _token_roles(2) | {
        part: [[0.0] * 3] * 2 for part in ('attention', 'mlp')}
    self.assertNotIn('class="mark', token_role_chart.draw('t', token_roles))


if __name__ == '__main__':
  absltest.main()
